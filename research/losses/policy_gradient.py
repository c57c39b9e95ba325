"""What losses of rewards share: a mean over tokens that is weighted with their advantages."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp

from research.batch import Batch
from research.config.schema import Count, Positive
from research.losses.base import Counts, Loss, Weighing


@dataclasses.dataclass(frozen=True)
class PolicyGradientLoss(Loss):
    """The mean over all answers' tokens of `values`; the gradient is that of its sum."""

    # columns of the sequence whose logits are in memory at one time
    chunk: Positive = 128
    # number of chunks of the vocabulary instead, for large heads that devices share; 0: none
    vocabulary_chunks: Count = 0

    example_kinds: ClassVar[tuple[str, ...]] = ("rollouts",)
    reads_nll: ClassVar[bool] = True

    def count(self, batch: Batch) -> Counts:
        """The divisor is the number of tokens of answers."""
        tokens = jnp.sum(batch.weights)
        return Counts(tokens, tokens)

    def weigh(self, nll: jax.Array, batch: Batch, counts: Counts) -> Weighing:
        assert batch.values is not None
        advantage = jnp.asarray(batch.values)

        def total(nll: jax.Array) -> tuple[jax.Array, Mapping[str, jax.Array]]:
            each, metrics = self.values(nll, advantage, batch)
            sums = {name: jnp.sum(values * batch.weights) for name, values in metrics.items()}
            return jnp.sum(each * batch.weights), sums

        (value, metrics), weights = jax.value_and_grad(total, has_aux=True)(nll)
        return Weighing(weights, value, metrics)

    def values(
        self, nll: jax.Array, advantage: jax.Array, batch: Batch
    ) -> tuple[jax.Array, Mapping[str, jax.Array]]:
        """The loss of each token [B,S], and metrics of each [B,S].

        Args:
          nll, advantage: [B,S].
        """
        raise NotImplementedError
