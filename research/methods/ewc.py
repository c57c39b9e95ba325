"""EWC: tuning that keeps what other data needs (Kirkpatrick 2017, arXiv:1612.00796)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp

from research.batch import Batch
from research.config.schema import NonNegative, Positive
from research.methods.base import Gradients
from research.methods.l2_sp import Anchored
from research.models.transformer import Transformer
from research.tree import Arrays


@dataclasses.dataclass(frozen=True)
class EWC(Anchored):
    """Each number weighs as its Fisher information: the mean over rows of `start_data` of the
    squared gradient of the row's log-likelihood, at the start."""

    strength: NonNegative = 100.0
    # batches of `start_data` that are read
    start_batches: Positive = 16
    kind: Literal["ewc"] = "ewc"
    needs_start_data: ClassVar[bool] = True

    @property
    def batches_to_start(self) -> int:
        return self.start_batches

    def memory(self, trainable: Arrays) -> Arrays:
        names = self.anchors(trainable)
        zeros = {f"{name}/ewc/fisher": jnp.zeros_like(trainable[name]) for name in names}
        return super().memory(trainable) | zeros

    def importance(self, name: str, memory: Arrays) -> jax.Array | float:
        return memory[f"{name}/ewc/fisher"]

    def start_from_data(
        self, model: Transformer, memory: Arrays, batches: Sequence[Batch], gradients: Gradients
    ) -> tuple[Transformer, Arrays]:
        names = tuple(name.removesuffix("/ewc/fisher") for name in memory if "/ewc/fisher" in name)
        rows = sum(len(batch.tokens) for batch in batches)
        sums: Arrays = {}
        for batch in batches:
            squares = gradients(model, names, batch, by_row=True)
            sums = {name: sums.get(name, 0.0) + square for name, square in squares.items()}
        return model, memory | {f"{name}/ewc/fisher": total / rows for name, total in sums.items()}
