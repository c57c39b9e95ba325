"""Kahneman-Tversky optimization (Ethayarajh 2024, arXiv:2402.01306)."""

import dataclasses
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp

from research.batch import GOOD, MISMATCHED, Batch
from research.config.schema import NonNegative, PositiveNumber
from research.losses.base import Counts
from research.losses.preference import PreferenceLoss, Value, has_role, read_answers


@dataclasses.dataclass(frozen=True)
class KTO(PreferenceLoss):
    """1 - sigmoid(beta * (r - z)) of good answers, 1 - sigmoid(beta * (z - r)) of bad ones.

    Answers are labelled one by one; r is an answer's log-ratio. z is the mean log-ratio of answers
    to other prompts in the row, not below 0, with no gradient (the paper's is over a micro-batch).
    So examples should share rows: with `data.pack` off z is of one answer.
    """

    # how far the model may go from the reference: small is far
    beta: PositiveNumber = 0.1
    # how much good answers count, and bad ones
    good_weight: NonNegative = 1.0
    bad_weight: NonNegative = 1.0
    kind: Literal["kto"] = "kto"

    array_fields: ClassVar[tuple[str, ...]] = ("beta", "good_weight", "bad_weight")
    example_kinds: ClassVar[tuple[str, ...]] = ("labelled answers",)
    needs_reference: ClassVar[bool] = True

    def value(self, nll: jax.Array, batch: Batch, counts: Counts) -> Value:
        mismatched, of_good = (has_role(batch, role) for role in (MISMATCHED, GOOD))
        other, _ = read_answers(nll, batch, mismatched, has_reference=True)
        _, own = read_answers(nll, batch, batch.weights, has_reference=True)
        others = jnp.sum(other.exists, axis=1, keepdims=True)  # [B,1]
        z = jnp.sum(other.log_ratio, axis=1, keepdims=True) / jnp.maximum(others, 1)
        z = jax.lax.stop_gradient(jnp.maximum(z, 0.0))
        _, good = read_answers(nll, batch, of_good, has_reference=False)
        is_good = good.exists
        sign = jnp.where(is_good, 1.0, -1.0)
        weight = jnp.where(is_good, self.good_weight, self.bad_weight)
        gain = sign * self.beta * (own.log_ratio - z)
        return own.total(weight * jax.nn.sigmoid(-gain)), {
            "reward_margin": own.total(gain),
            "preference_accuracy": own.total((gain > 0).astype(jnp.float32)),
            "reference_point": own.total(jnp.broadcast_to(z, gain.shape)),
        }
