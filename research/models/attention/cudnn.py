"""cuDNN's flash attention: the fast path on NVIDIA GPUs, through JAX's public function.

Packing, prefix and window go to the kernel as a mask [B,1,S,T]; the causal half is its own, and it
skips the blocks above the diagonal. Scores [B,H,S,T] never exist.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from research import sharding
from research.models.attention.mask import Mask


def refuses(query: jax.Array, key: jax.Array, mask: Mask, cap: float) -> str | None:
    """Why this call is not for the kernel, or None."""
    s, t, n = query.shape[1], key.shape[1], query.shape[-1]
    if (platform := sharding.platform()) != "gpu":
        return f"runs on NVIDIA GPUs, not on {platform}"
    if query.dtype not in (jnp.bfloat16, jnp.float16):
        return f"has no {query.dtype}: set model.compute_dtype to bfloat16"
    if cap:
        return "has no soft cap of scores"
    if n % 8 or n > 128:
        return f"takes heads of a multiple of 8 up to 128, not {n}"
    if s % 2 or t % 2:
        return f"takes even lengths, not {s} queries and {t} keys"
    return None


def attention(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: Mask, cap: float = 0.0
) -> jax.Array:
    """Grouped-query attention: query [B,S,H,N], key and value [B,T,K,N] -> [B,S,H,N]."""
    in_order = mask.key_prefix is None and query.shape[1] == key.shape[1]
    return jax.nn.dot_product_attention(
        query,
        key,
        value,
        mask=mask.to_array()[:, None],
        is_causal=in_order,  # the mask implies it; this lets the kernel skip blocks
        implementation="cudnn",
    )
