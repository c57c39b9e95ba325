"""Group relative policy optimization (Shao 2024, arXiv:2402.03300, equation 3), without its KL."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp

from research.batch import Batch
from research.config.schema import PositiveNumber
from research.losses.policy_gradient import PolicyGradientLoss


@dataclasses.dataclass(frozen=True)
class GRPO(PolicyGradientLoss):
    """-min(ratio * advantage, clip(ratio) * advantage) of each token.

    The ratio is its probability over that by the model at the run's start, which drew it. The mean
    is over all tokens, whatever the length of their answers (as in DAPO, arXiv:2503.14476).
    """

    # how far a ratio may fall below 1, or rise above it, and still be learnt from
    clip: PositiveNumber = 0.2
    clip_high: PositiveNumber = 0.2
    kind: Literal["grpo"] = "grpo"

    array_fields: ClassVar[tuple[str, ...]] = ("clip", "clip_high")
    needs_reference: ClassVar[bool] = True
    shown_metrics: ClassVar[tuple[str, ...]] = ("kl", "clipped_share")

    def values(
        self, nll: jax.Array, advantage: jax.Array, batch: Batch
    ) -> tuple[jax.Array, Mapping[str, jax.Array]]:
        assert batch.reference is not None
        # 0 where nothing is trained on: what a prompt's ratio is must not overflow
        log_ratio = jnp.where(batch.weights > 0, -nll - jnp.asarray(batch.reference), 0.0)
        ratio = jnp.exp(log_ratio)
        limited = jnp.clip(ratio, 1 - self.clip, 1 + self.clip_high)
        is_clipped = ratio * advantage > limited * advantage
        return -jnp.minimum(ratio * advantage, limited * advantage), {
            "clipped_share": is_clipped.astype(jnp.float32),
            "kl": ratio - 1 - log_ratio,  # of the start from the model: never negative
        }
