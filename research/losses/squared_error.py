"""Squared error of a number that a head says of a whole document."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp

from research.batch import Batch
from research.config.schema import Positive
from research.losses.base import Counts, Loss, TokenLosses

# how far a number may lie from the right one to count as right
TOLERANCE = 0.5


@dataclasses.dataclass(frozen=True)
class SquaredError(Loss):
    """(score - value)^2, of the head's one output at a document's last token (`Batch.values`).

    There is no likelihood: `nll` is the same, and `accuracy` the share of numbers at most 0.5 away.
    """

    # columns of the sequence whose scores are in memory at one time
    chunk: Positive = 128
    kind: Literal["squared_error"] = "squared_error"

    example_kinds: ClassVar[tuple[str, ...]] = ("numbers",)
    reads_logits: ClassVar[bool] = True
    metric_names: ClassVar[tuple[str, ...]] = ("absolute_error",)
    shown_metrics: ClassVar[tuple[str, ...]] = ("absolute_error",)
    vocabulary_chunks = 0

    def count(self, batch: Batch) -> Counts:
        """Both sums are that of the weights."""
        tokens = jnp.sum(batch.weights)
        return Counts(tokens, tokens)

    def token_losses(self, logits: jax.Array, batch: Batch) -> TokenLosses:
        assert batch.values is not None
        error = logits[..., 0] - batch.values
        squared, size = error * error, jnp.abs(error)
        return TokenLosses(
            squared, squared, (size <= TOLERANCE).astype(jnp.float32), {"absolute_error": size}
        )
