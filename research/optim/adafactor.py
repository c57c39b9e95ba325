"""Adafactor: second moments of a matrix by rows and columns (Shazeer 2018, arXiv:1804.04235)."""

from __future__ import annotations

import dataclasses
from typing import Literal

import optax

from research.optim.base import Axes, Optimizer


@dataclasses.dataclass(frozen=True)
class Adafactor(Optimizer):
    """No first moment; steps are relative to a leaf's own size."""

    kind: Literal["adafactor"] = "adafactor"

    def transformation(self, axes: Axes) -> optax.GradientTransformation:
        return optax.chain(
            optax.scale_by_factored_rms(),
            optax.clip_by_block_rms(1.0),
            optax.scale_by_param_block_rms(),
        )
