"""Reference attention: every score of every head in memory at once."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from research.models.attention.mask import Mask

MASKED_SCORE = -1e30  # finite, so that a row that attends to nothing (padding) gives no NaN


def refuses(query: jax.Array, key: jax.Array, mask: Mask, cap: float) -> None:
    """None: it computes every call."""


def attention(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: Mask, cap: float = 0.0
) -> jax.Array:
    """Grouped-query attention with a float32 softmax.

    Args:
      query: [B,S,H,N]; H = K * G, and G consecutive heads share a key head.
      key, value: [B,T,K,N].
      cap: soft cap of the scores; 0 for none.

    Returns:
      [B,S,H,N].
    """
    b, s, h, n = query.shape
    k = key.shape[2]
    groups = query.reshape(b, s, k, h // k, n)
    scores = jnp.einsum("bskgn,btkn->bkgst", groups, key, preferred_element_type=jnp.float32)
    scores = soft_cap(scores * n**-0.5, cap)
    scores = jnp.where(mask.to_array()[:, None, None], scores, MASKED_SCORE)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    return jnp.einsum("bkgst,btkn->bskgn", weights, value).reshape(b, s, h, n)


def soft_cap(x: jax.Array, cap: float) -> jax.Array:
    """`cap * tanh(x / cap)`: bounded, and nearly x where x is small (Gemma 2, arXiv:2408.00118).

    A cap of 0 returns x.
    """
    return cap * jnp.tanh(x / cap) if cap else x
