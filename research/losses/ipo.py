"""Identity preference optimization (Azar 2023, arXiv:2310.12036)."""

import dataclasses
from typing import ClassVar, Literal

import jax

from research.config.schema import PositiveNumber
from research.losses.base import Counts
from research.losses.preference import Answers, PairLoss


@dataclasses.dataclass(frozen=True)
class IPO(PairLoss):
    """(difference of the log-ratios of a token, on average - 1 / (2 beta))^2.

    A target for the margin, where DPO has none. Means over tokens and not sums, as TRL has it by
    its word with the authors, so that beta means the same for answers of any length.
    """

    # the paper's tau: the margin to reach is 1 / (2 beta)
    beta: PositiveNumber = 0.1
    kind: Literal["ipo"] = "ipo"

    array_fields: ClassVar[tuple[str, ...]] = ("beta",)
    needs_reference: ClassVar[bool] = True

    def losses(self, good: Answers, bad: Answers, counts: Counts) -> jax.Array:
        margin = good.mean(good.log_ratio) - bad.mean(bad.log_ratio)
        return (margin - 1 / (2 * self.beta)) ** 2

    def reward(self, answers: Answers) -> jax.Array:
        return self.beta * answers.log_ratio
