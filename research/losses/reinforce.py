"""REINFORCE (Williams 1992): the log-likelihood of what was drawn, times its advantage."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

import jax

from research.batch import Batch
from research.losses.policy_gradient import PolicyGradientLoss


@dataclasses.dataclass(frozen=True)
class Reinforce(PolicyGradientLoss):
    """-advantage * log p of each token; right for the step after an answer was drawn, no other."""

    kind: Literal["reinforce"] = "reinforce"

    def values(
        self, nll: jax.Array, advantage: jax.Array, batch: Batch
    ) -> tuple[jax.Array, Mapping[str, jax.Array]]:
        return nll * advantage, {}
