"""Full-parameter tuning, which is also pretraining: everything trains, nothing is attached."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

import jax

from research.methods.base import Method
from research.models.transformer import Transformer


@dataclasses.dataclass(frozen=True)
class Full(Method):
    """Every parameter trains."""

    kind: Literal["full"] = "full"
    stands_alone: ClassVar[bool] = True

    @property
    def trains(self) -> tuple[tuple[str, bool], ...]:
        return ((".*", True),)

    def attach(self, model: Transformer, key: jax.Array) -> Transformer:
        return model
