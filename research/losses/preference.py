"""What losses of preferences share: the sums of each answer's tokens, and their derivative.

An example is two documents that follow each other in a row, each with the prompt in front: a chosen
and a rejected answer, or (`kto`) an answer to another prompt and the own one. Nothing couples rows,
so that mesh and accumulation change no loss.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from research.batch import GOOD, Array, Batch
from research.config.schema import Count, Positive
from research.losses.base import Counts, Loss, Weighing

Value = tuple[jax.Array, Mapping[str, jax.Array]]  # summed loss [], and summed metrics [] each


@dataclasses.dataclass(frozen=True)
class PreferenceLoss(Loss):
    """A loss of whole answers, summed over examples; the gradient is that of `value`."""

    # columns of the sequence whose logits are in memory at one time
    chunk: Positive = 128
    # number of chunks of the vocabulary instead, for large heads that devices share; 0: none
    vocabulary_chunks: Count = 0

    reads_nll: ClassVar[bool] = True
    shown_metrics: ClassVar[tuple[str, ...]] = ("preference_accuracy", "reward_margin")

    def count(self, batch: Batch) -> Counts:
        """The divisor is the number of examples."""
        begins = (batch.segments > 0) & (batch.segments % 2 == 1) & (batch.positions == 0)
        good = jnp.sum(batch.weights * has_role(batch, GOOD))
        return Counts(jnp.sum(begins.astype(jnp.float32)), jnp.sum(batch.weights), good)

    def weigh(self, nll: jax.Array, batch: Batch, counts: Counts) -> Weighing:
        def value(nll: jax.Array) -> Value:
            return self.value(nll, batch, counts)

        (total, metrics), weights = jax.value_and_grad(value, has_aux=True)(nll)
        return Weighing(weights, total, metrics)

    def value(self, nll: jax.Array, batch: Batch, counts: Counts) -> Value:
        """The loss of all examples and its metrics, summed."""
        raise NotImplementedError


class Answers(NamedTuple):
    """One answer of each example; [B,E] each, of which `exists` says where there is one."""

    log_prob: jax.Array  # of the whole answer
    reference: jax.Array  # the same by the reference model; 0 without one
    tokens: jax.Array
    exists: jax.Array  # bool

    @property
    def log_ratio(self) -> jax.Array:
        """How much likelier it is than by the reference."""
        return self.log_prob - self.reference

    def mean(self, of: jax.Array) -> jax.Array:
        """A sum over its tokens, for each of them."""
        return of / jnp.maximum(self.tokens, 1e-9)

    def total(self, each: jax.Array) -> jax.Array:
        """[] the sum over all answers that there are."""
        return jnp.sum(jnp.where(self.exists, each, 0.0))


@dataclasses.dataclass(frozen=True)
class PairLoss(PreferenceLoss):
    """A loss of pairs: what each costs, and what is reported as its answers' rewards."""

    example_kinds: ClassVar[tuple[str, ...]] = ("pairs",)

    def losses(self, good: Answers, bad: Answers, counts: Counts) -> jax.Array:
        """[B,E] the loss of each pair."""
        raise NotImplementedError

    def reward(self, answers: Answers) -> jax.Array:
        """[B,E] what the model says of answers."""
        raise NotImplementedError

    def value(self, nll: jax.Array, batch: Batch, counts: Counts) -> Value:
        good, bad = read_answers(nll, batch, batch.weights, self.needs_reference)
        total = good.total(self.losses(good, bad, counts))
        high, low = self.reward(good), self.reward(bad)
        return total, {
            "chosen_reward": good.total(high),
            "rejected_reward": good.total(low),
            "reward_margin": good.total(high - low),
            "preference_accuracy": good.total((high > low).astype(jnp.float32)),
        }


def has_role(batch: Batch, role: int) -> jax.Array:
    """[B,S] float32: 1 where the target has this role."""
    assert batch.roles is not None
    return (jnp.asarray(batch.roles) == role).astype(jnp.float32)


def read_answers(
    nll: jax.Array, batch: Batch, weights: Array, has_reference: bool
) -> tuple[Answers, Answers]:
    """The first and the second answer of every example.

    Args:
      nll: [B,S].
      weights: [B,S] of the tokens of answers.
      has_reference: whether `batch.reference` is read.
    """
    summed = [-nll * weights, jnp.asarray(weights)]
    if has_reference:
        assert batch.reference is not None
        summed.append(jnp.asarray(batch.reference) * weights)
    first, second = ([each[..., i] for each in _sums(summed, batch.segments)] for i in (0, 1))
    none = jnp.zeros_like(first[0])

    def answers(log_prob: jax.Array, tokens: jax.Array, reference: jax.Array = none) -> Answers:
        return Answers(log_prob, reference, tokens, tokens > 0)

    return answers(*first), answers(*second)


def _sums(values: list[jax.Array], segments: Array) -> list[jax.Array]:
    """Sums [B,E,2] of values [B,S] over each document: those of example e are 2e + 1 and 2e + 2.

    Running sums that begin anew with each document: nothing is scattered, so that they are the same
    bits every time, and no sum of a document loses digits to those before it.
    """
    rows, length = segments.shape
    count = max(1, length // 2)
    numbers = jnp.where(jnp.asarray(segments) > 0, segments, length + 1)  # padding comes last
    begins = jnp.concatenate([jnp.ones((rows, 1), bool), numbers[:, 1:] != numbers[:, :-1]], axis=1)
    running, _ = jax.lax.associative_scan(_add_unless_new, (values, begins), axis=1)
    wanted_numbers = 1 + jnp.arange(2 * count)
    ends = jax.vmap(lambda row: jnp.searchsorted(row, wanted_numbers, side="right"))(numbers)
    last = jnp.maximum(ends - 1, 0)  # of each document, its last place
    is_there = jnp.take_along_axis(numbers, last, axis=1) == wanted_numbers
    return [
        jnp.where(is_there, jnp.take_along_axis(each, last, axis=1), 0.0).reshape(rows, count, 2)
        for each in running
    ]


def _add_unless_new(left: Any, right: Any) -> Any:
    """One running sum of two neighbours: that of the right alone, where a document begins in it."""
    (sums, has_begun), (others, begins) = left, right
    added = [jnp.where(begins, b, a + b) for a, b in zip(sums, others, strict=True)]
    return added, has_begun | begins
