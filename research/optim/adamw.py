"""Adam with decoupled weight decay (Loshchilov 2019, arXiv:1711.05101)."""

from __future__ import annotations

import dataclasses
from typing import Literal

import optax

from research.config.schema import BelowOne, PositiveNumber
from research.optim.base import Axes, Optimizer


@dataclasses.dataclass(frozen=True)
class AdamW(Optimizer):
    """Adam; the run's `weight_decay` is the W."""

    # decay of the first moment
    b1: BelowOne = 0.9
    # decay of the second moment
    b2: BelowOne = 0.95
    # added to the root of the second moment
    epsilon: PositiveNumber = 1e-8
    kind: Literal["adamw"] = "adamw"

    def transformation(self, axes: Axes) -> optax.GradientTransformation:
        return optax.scale_by_adam(self.b1, self.b2, self.epsilon)
