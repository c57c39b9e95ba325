"""What a loss is: how much each token's negative log-likelihood weighs in the gradient of a step.

The gradient of any function f of the negative log-likelihoods [B,S] of a batch is that of
sum(w * nll) with w = df/dnll held fixed. So a loss only weighs, and the step differentiates one
weighted sum whatever the loss is. A new loss is one file and one line in `research.losses.LOSSES`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, Self, cast

import jax
import numpy as np

from research.batch import Array, Batch


class Counts(NamedTuple):
    """Sums over a whole batch, over all devices and micro-batches; [] each."""

    # what the loss is divided by, once
    divisor: jax.Array
    # trained tokens, each with its weight: what `nll` and `accuracy` are divided by
    tokens: jax.Array
    # of these, the ones of answers that are to become likelier
    good_tokens: jax.Array | None = None


class Weighing(NamedTuple):
    """What a loss makes of (micro-)batches; sums, but for the weights."""

    weights: jax.Array  # [B,S] float32: the derivative of `value` by each token's nll
    value: jax.Array  # [] the loss, before its division
    metrics: Mapping[str, jax.Array]  # [] each, divided as the loss is


class TokenLosses(NamedTuple):
    """Losses of each token, [B,S] each, or their sums."""

    loss: jax.Array  # the training loss
    nll: jax.Array  # negative log-likelihood in nats
    correct: jax.Array  # 1 where no token is likelier than the target, float32
    metrics: Mapping[str, jax.Array] = {}  # of the loss


class Loss:
    """A loss; each is a frozen dataclass with a `kind: Literal[...]` of its own.

    One that `reads_nll` has `count` and `weigh`, and pays a second pass of the head: the first
    gives the likelihoods, the second the gradient of their weighted sum. One that `reads_logits`
    has `token_losses`, of each token's logits alone, and is one pass as cross-entropy is.
    """

    # its name in the registry and in configs
    kind: str
    # columns of the sequence whose logits are in memory at one time
    chunk: int
    # number of chunks of the vocabulary instead; 0: none
    vocabulary_chunks: int

    # fields that a step takes as arrays: runs that differ in them share a program
    array_fields: ClassVar[tuple[str, ...]] = ()
    # what examples may be (`Objective.example_kind`)
    example_kinds: ClassVar[tuple[str, ...]] = ("texts",)
    # whether its weights depend on the likelihoods
    reads_nll: ClassVar[bool] = False
    # whether it is a mean over tokens, each of which has a loss of its own logits
    reads_logits: ClassVar[bool] = False
    # of one that does, its metrics
    metric_names: ClassVar[tuple[str, ...]] = ()
    # of its metrics, those that the progress bar shows
    shown_metrics: ClassVar[tuple[str, ...]] = ()
    # whether it reads `Batch.reference`
    needs_reference: ClassVar[bool] = False
    # whether it learns from a teacher, and the folder of that run
    needs_teacher: ClassVar[bool] = False
    teacher: str | None = None

    @property
    def model_fields(self) -> dict[str, tuple[tuple[int, ...], type]]:
        """Fields of `Batch` that a model gives before the first step: shape behind [B,S], type."""
        return {"reference": ((), np.float32)} if self.needs_reference else {}

    def count(self, batch: Batch) -> Counts:
        """The sums of a whole batch."""
        raise NotImplementedError

    def weigh(self, nll: jax.Array, batch: Batch, counts: Counts) -> Weighing:
        """Weights of tokens, from their negative log-likelihoods nll [B,S] in nats."""
        raise NotImplementedError

    def token_losses(self, logits: jax.Array, batch: Batch) -> TokenLosses:
        """The loss of each token [B,C], to be differentiated by its logits [B,C,V].

        Args:
          batch: these columns of it, [B,C,...] each.
        """
        raise NotImplementedError

    @property
    def numbers(self) -> dict[str, Array]:
        """The fields that a step takes as arrays, [] each."""
        return {name: np.asarray(getattr(self, name), np.float32) for name in self.array_fields}

    def with_numbers(self, numbers: Mapping[str, Any]) -> Self:
        """The same with other numbers, which may be traced."""
        if not numbers:
            return self
        return cast(Self, dataclasses.replace(cast(Any, self), **numbers))

    def without_numbers(self) -> Self:
        """The same for all that differ in numbers alone."""
        return self.with_numbers(dict.fromkeys(self.array_fields, 1.0))
