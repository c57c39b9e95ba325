"""AdEMAMix: Adam with a second, slow momentum (Pagliardini 2024, arXiv:2409.03137)."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp
import optax

from research.config.schema import BelowOne, Count, NonNegative, PositiveNumber
from research.optim.base import Axes, Optimizer


@dataclasses.dataclass(frozen=True)
class AdEMAMix(Optimizer):
    """Adam whose first moment is a fast average of gradients and `alpha` times a slow one."""

    # decay of the fast first moment
    b1: BelowOne = 0.9
    # decay of the second moment
    b2: BelowOne = 0.999
    # decay of the slow first moment
    b3: BelowOne = 0.9999
    # weight of the slow first moment
    alpha: NonNegative = 5.0
    # steps over which `alpha` and `b3` rise to these values; 0: they have them from the first
    ramp: Count = 0
    # added to the root of the second moment
    epsilon: PositiveNumber = 1e-8
    kind: Literal["ademamix"] = "ademamix"

    def transformation(self, axes: Axes) -> optax.GradientTransformation:
        b3, alpha = (self._ramped_b3, self._ramped_alpha) if self.ramp else (self.b3, self.alpha)
        return optax.contrib.scale_by_ademamix(self.b1, self.b2, b3, alpha, eps=self.epsilon)

    def _ramped_alpha(self, count: jax.Array) -> jax.Array:
        return self.alpha * jnp.minimum(count / self.ramp, 1)

    def _ramped_b3(self, count: jax.Array) -> jax.Array:
        """From b1, so that the half-life of the slow moment rises linearly."""
        share, fast, slow = jnp.minimum(count / self.ramp, 1), math.log(self.b1), math.log(self.b3)
        return jnp.exp(fast * slow / ((1 - share) * slow + share * fast))
