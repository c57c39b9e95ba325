"""Partial tuning: any part of the base, by pattern (last layers, norms, biases, the head)."""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax

from research import tree
from research.methods.base import Method
from research.models.transformer import Transformer


@dataclasses.dataclass(frozen=True)
class Partial(Method):
    r"""Trains the parameters that the patterns match, such as `layers/(22|23)/.*`."""

    # full regular expressions over parameter names
    patterns: tuple[str, ...] = (r".*norm/scale",)
    kind: Literal["partial"] = "partial"

    @property
    def trains(self) -> tuple[tuple[str, bool], ...]:
        # of the base alone: what another method attaches trains as that method says
        return tuple((rf"{tree.OF_THE_BASE}(?:{p})", True) for p in self.patterns)

    def attach(self, model: Transformer, key: jax.Array) -> Transformer:
        base = [name for name in tree.flatten(model) if not tree.is_attached(name)]
        tree.check_patterns(self.patterns, base, "method: patterns")
        return model
