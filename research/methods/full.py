"""Full-parameter tuning, which is also pretraining: everything trains, nothing is attached."""

from __future__ import annotations

import dataclasses

import jax

from research.models.transformer import Transformer


@dataclasses.dataclass(frozen=True)
class Full:
    """Every parameter trains."""

    trains: tuple[tuple[str, bool], ...] = ((".*", True),)

    def attach(self, model: Transformer, key: jax.Array) -> Transformer:
        return model
