"""Lion: the sign of a momentum (Chen 2023, arXiv:2302.06675)."""

from __future__ import annotations

import dataclasses
from typing import Literal

import optax

from research.config.schema import BelowOne
from research.optim.base import Axes, Optimizer


@dataclasses.dataclass(frozen=True)
class Lion(Optimizer):
    """Every number moves by the learning rate: rates are 3 to 10 times smaller than Adam's."""

    # share of the momentum in what the sign is taken of
    b1: BelowOne = 0.9
    # decay of the momentum
    b2: BelowOne = 0.95
    kind: Literal["lion"] = "lion"

    def transformation(self, axes: Axes) -> optax.GradientTransformation:
        return optax.scale_by_lion(self.b1, self.b2)
