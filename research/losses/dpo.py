"""Direct preference optimization (Rafailov 2023, arXiv:2305.18290)."""

import dataclasses
from typing import ClassVar, Literal

import jax

from research.config.schema import NonNegative, PositiveNumber
from research.losses.base import Counts
from research.losses.preference import Answers, PairLoss


@dataclasses.dataclass(frozen=True)
class DPO(PairLoss):
    """-log sigmoid(beta * (log-ratio of the chosen answer - that of the rejected one)).

    The first loss of a run is ln 2, as the model is its own reference then.
    """

    # how far the model may go from the reference: small is far
    beta: PositiveNumber = 0.1
    # share of the pairs that are taken to be the wrong way round (conservative DPO, Mitchell 2023)
    label_smoothing: NonNegative = 0.0
    kind: Literal["dpo"] = "dpo"

    array_fields: ClassVar[tuple[str, ...]] = ("beta", "label_smoothing")
    needs_reference: ClassVar[bool] = True

    def losses(self, good: Answers, bad: Answers, counts: Counts) -> jax.Array:
        margin = self.beta * (good.log_ratio - bad.log_ratio)
        right, wrong = jax.nn.softplus(-margin), jax.nn.softplus(margin)
        return (1 - self.label_smoothing) * right + self.label_smoothing * wrong

    def reward(self, answers: Answers) -> jax.Array:
        return self.beta * answers.log_ratio
