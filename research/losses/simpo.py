"""Simple preference optimization (Meng 2024, arXiv:2405.14734)."""

import dataclasses
from typing import ClassVar, Literal

import jax

from research.config.schema import NonNegative, PositiveNumber
from research.losses.base import Counts
from research.losses.preference import Answers, PairLoss


@dataclasses.dataclass(frozen=True)
class SimPO(PairLoss):
    """-log sigmoid(beta * (difference of the mean log-probabilities of a token) - gamma).

    It has no reference, so that a small learning rate is all that keeps the model near its start.
    """

    # the scale of rewards
    beta: PositiveNumber = 2.0
    # the margin that the chosen answer's reward must have
    gamma: NonNegative = 0.5
    kind: Literal["simpo"] = "simpo"

    array_fields: ClassVar[tuple[str, ...]] = ("beta", "gamma")

    def losses(self, good: Answers, bad: Answers, counts: Counts) -> jax.Array:
        return jax.nn.softplus(self.gamma - self.reward(good) + self.reward(bad))

    def reward(self, answers: Answers) -> jax.Array:
        return self.beta * answers.mean(answers.log_prob)
