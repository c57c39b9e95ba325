"""Odds-ratio preference optimization (Hong 2024, arXiv:2403.07691)."""

import dataclasses
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp

from research.config.schema import NonNegative
from research.losses.base import Counts
from research.losses.preference import Answers, PairLoss


@dataclasses.dataclass(frozen=True)
class ORPO(PairLoss):
    """Cross-entropy of the chosen answers, and beta times -log sigmoid(log odds ratio).

    The odds are those of an answer's mean probability of a token. The cross-entropy is a mean over
    all tokens of chosen answers, as in supervised tuning: TRL's also counts those of the prompts.
    No reference is needed.
    """

    # the paper's lambda: how much the odds ratio counts
    beta: NonNegative = 0.1
    kind: Literal["orpo"] = "orpo"

    array_fields: ClassVar[tuple[str, ...]] = ("beta",)

    def losses(self, good: Answers, bad: Answers, counts: Counts) -> jax.Array:
        assert counts.good_tokens is not None
        # the sum over pairs is divided by their number, and this by that of tokens
        tuning = -good.log_prob * (counts.divisor / jnp.maximum(counts.good_tokens, 1e-9))
        return tuning + self.beta * jax.nn.softplus(_log_odds(bad) - _log_odds(good))

    def reward(self, answers: Answers) -> jax.Array:
        return self.beta * answers.mean(answers.log_prob)


def _log_odds(answers: Answers) -> jax.Array:
    """log(p / (1 - p)) of the mean probability p of a token."""
    # where there is no answer p would be 1, whose odds have no gradient
    log_p = jnp.where(answers.exists, answers.mean(answers.log_prob), -1.0)
    log_p = jnp.minimum(log_p, -1e-7)
    return log_p - jnp.log(-jnp.expm1(log_p))
