"""Reference attention: every score of every head in memory at once."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from research.models.attention.mask import Mask

HIDDEN = -1e30  # finite, so that a row that sees nothing (padding) gives no NaN


def refuses(query: jax.Array, key: jax.Array, mask: Mask) -> None:
    """Nothing."""


def attention(query: jax.Array, key: jax.Array, value: jax.Array, mask: Mask) -> jax.Array:
    """Grouped-query attention with a float32 softmax.

    Args:
      query: [B,S,H,N]; H = K * G, neighbours share a key head.
      key, value: [B,T,K,N].

    Returns:
      [B,S,H,N].
    """
    b, s, h, n = query.shape
    k = key.shape[2]
    grouped = query.reshape(b, s, k, h // k, n)
    scores = jnp.einsum("bskgn,btkn->bkgst", grouped, key, preferred_element_type=jnp.float32)
    scores = jnp.where(mask.allowed()[:, None, None], scores * n**-0.5, HIDDEN)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    return jnp.einsum("bkgst,btkn->bskgn", weights, value).reshape(b, s, h, n)
