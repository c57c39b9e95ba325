"""Muon: orthogonalized momentum (Jordan 2024), with one rate for all leaves (arXiv:2502.16982)."""

from __future__ import annotations

import dataclasses
from typing import Literal

import optax

from research.config.schema import BelowOne, PositiveNumber
from research.optim.base import Axes, Optimizer, is_layer_matrix


@dataclasses.dataclass(frozen=True)
class Muon(Optimizer):
    """Muon for matrices of layers; Adam for the embedding, the head and vectors."""

    # decays of Adam's moments
    b1: BelowOne = 0.9
    b2: BelowOne = 0.95
    # added to the root of Adam's second moment, and to the norm before orthogonalization
    epsilon: PositiveNumber = 1e-8
    kind: Literal["muon"] = "muon"

    def transformation(self, axes: Axes) -> optax.GradientTransformation:
        if not is_layer_matrix(axes):
            return optax.scale_by_adam(self.b1, self.b2, self.epsilon)
        # scaled to the usual size of Adam's updates, so that one rate serves both; Optax's muon has
        # the opposite sign
        muon = optax.contrib.muon(1.0, consistent_rms=0.2, eps=self.epsilon)
        return optax.chain(muon, optax.scale(-1.0))
