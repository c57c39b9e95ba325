"""Sampling of the next token from its logits."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Settings of the draw of the next token."""

    # divides the logits; 0 takes the likeliest token
    temperature: float = 0.0
    # draw among the k likeliest tokens; 0 among all
    top_k: int = 0
    # draw among the likeliest tokens that hold this share of probability (arXiv:1904.09751)
    top_p: float = 1.0
    # random seed; a row's draws depend on it, on the row's number and on the token's, alone
    seed: int = 0

    def __post_init__(self):
        in_range = self.temperature >= 0 and 0 < self.top_p <= 1  # also refuses what is no number
        if not (in_range and 0 <= self.top_k < 2**31 and 0 <= self.seed < 2**31):
            raise ValueError(
                f"sampling: temperature {self.temperature} must not be negative, top_p "
                f"{self.top_p} must lie in (0, 1], top_k {self.top_k} and seed {self.seed} in "
                "[0, 2^31)"
            )


def sample(
    logits: jax.Array, keys: jax.Array, temperature: jax.Array, top_k: jax.Array, top_p: jax.Array
) -> jax.Array:
    """Next tokens [B] from logits [B,V] and a key for each row; the numbers are scalars."""
    greedy = jnp.argmax(logits, axis=-1)
    order = jnp.argsort(-logits, axis=-1)
    ranked_logits = jnp.take_along_axis(logits, order, axis=-1) / jnp.maximum(temperature, 1e-6)
    share = jax.nn.softmax(ranked_logits, axis=-1)
    rank = jnp.arange(logits.shape[-1])
    before = jnp.cumsum(share, axis=-1) - share  # the likeliest token always stays
    is_candidate = (before < top_p) & ((top_k == 0) | (rank < top_k))
    samples = jax.vmap(jax.random.categorical)(
        keys, jnp.where(is_candidate, ranked_logits, -jnp.inf)
    )
    samples = jnp.take_along_axis(order, samples[:, None], axis=-1)[:, 0]
    return jnp.where(temperature > 0, samples, greedy).astype(jnp.int32)
