"""Attention of new tokens to earlier keys and values, and to each other."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from research.models.attention.mask import Mask
from research.models.attention.plain import MASKED_SCORE, soft_cap
from research.models.cache import Vectors


def attention(
    query: jax.Array,
    new: tuple[jax.Array, jax.Array],
    mask: Mask,
    earlier: tuple[Vectors, Vectors],
    earlier_mask: Mask,
    cap: float = 0.0,
) -> jax.Array:
    """Grouped-query attention with a float32 softmax; what is earlier is read and not moved.

    Args:
      query: [B,S,H,N]; H = K * G, and G consecutive heads share a key head.
      new: keys and values [B,S',K,N] of the new tokens.
      mask: of the new tokens, [B,S,S'].
      earlier: keys and values [B,K,T,N], or [1,K,T,N] for all rows.
      earlier_mask: of the earlier ones, [B,S,T].
      cap: soft cap of the scores; 0 for none.

    Returns:
      [B,S,H,N].
    """
    b, s, h, n = query.shape
    (key, value), (earlier_keys, earlier_values) = new, earlier
    k = key.shape[2]
    # queries that share a head are rows of one matrix
    rows = query.reshape(b, s, k, h // k, n).transpose(0, 2, 3, 1, 4).reshape(b, k, -1, n)
    scores = jnp.concatenate(
        [
            _scores(rows, earlier_keys),
            _own_scores(rows, key),
        ],
        axis=-1,
    )
    scores = soft_cap(scores * n**-0.5, cap).reshape(b, k, h // k, s, -1)
    may_see = jnp.concatenate([earlier_mask.to_array(), mask.to_array()], axis=-1)
    weights = jax.nn.softmax(jnp.where(may_see[:, None, None], scores, MASKED_SCORE), axis=-1)
    weights, earlier_count = (
        weights.reshape(b, k, h // k * s, -1),
        earlier_mask.key_segments.shape[1],
    )
    y = _mean(weights[..., :earlier_count], earlier_values, value.dtype)
    y = (y + _own_mean(weights[..., earlier_count:], value)).astype(value.dtype)
    return y.reshape(b, k, h // k, s, n).transpose(0, 3, 1, 2, 4).reshape(b, s, h, n)


def _own_scores(rows: jax.Array, key: jax.Array) -> jax.Array:
    """rows [B,K,R,N] times new keys [B,T,K,N] -> [B,K,R,T] in float32.

    Of one token without a product, of which XLA has none so small in bfloat16 on CPU.
    """
    if key.shape[1] > 1:
        return jnp.einsum("bkrn,btkn->bkrt", rows, key, preferred_element_type=jnp.float32)
    one = key[:, 0, :, None]
    return jnp.sum(rows.astype(jnp.float32) * one.astype(jnp.float32), axis=-1, keepdims=True)


def _own_mean(weights: jax.Array, value: jax.Array) -> jax.Array:
    """weights [B,K,R,T] times new values [B,T,K,N] -> [B,K,R,N] in float32."""
    weights = weights.astype(value.dtype)
    if value.shape[1] > 1:
        return jnp.einsum("bkrt,btkn->bkrn", weights, value, preferred_element_type=jnp.float32)
    one = value[:, 0, :, None]
    return weights.astype(jnp.float32) * one.astype(jnp.float32)


def _scores(rows: jax.Array, keys: Vectors) -> jax.Array:
    """rows [B,K,R,N] times stored keys -> [B,K,R,T] in float32."""
    one = keys.numbers.shape[0] < rows.shape[0]
    form = "bkrn,ktn->bkrt" if one else "bkrn,bktn->bkrt"
    numbers = (keys.numbers[0] if one else keys.numbers).astype(rows.dtype)
    scores = jnp.einsum(form, rows, numbers, preferred_element_type=jnp.float32)
    return scores if keys.scale is None else scores * keys.scale[:, :, None]


def _mean(weights: jax.Array, values: Vectors, dtype: jnp.dtype) -> jax.Array:
    """weights [B,K,R,T] times stored values, as `dtype` has both -> [B,K,R,N] in float32.

    Asked for in bfloat16, XLA converts all that is stored for its product on CPU.
    """
    if values.scale is not None:
        weights = weights * values.scale[:, :, None]
    one = values.numbers.shape[0] < weights.shape[0]
    form = "bkrt,ktn->bkrn" if one else "bkrt,bktn->bkrn"
    numbers = (values.numbers[0] if one else values.numbers).astype(dtype)
    return jnp.einsum(form, weights.astype(dtype), numbers, preferred_element_type=jnp.float32)
