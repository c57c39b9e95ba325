"""Attention backends, one file each, and the mask that all of them take.

A backend is a module with `attention(query, key, value, mask, cap)` and
`refuses(query, key, mask, cap)`, which gives the reason why it cannot compute a call, or None.
"""

import warnings

import jax

from research import sharding
from research.models.attention import blocked, cudnn, plain, splash
from research.models.attention.mask import Mask
from research.models.attention.plain import soft_cap

BACKENDS = {"plain": plain, "blocked": blocked, "cudnn": cudnn, "splash": splash}
# the backend of "auto", by JAX's name for the platform
FASTEST = {"cpu": "blocked", "gpu": "cudnn", "tpu": "splash"}
AUTO = "auto"


def attention(
    backend: str,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: Mask,
    cap: float = 0.0,
) -> jax.Array:
    """Grouped-query attention: query [B,S,H,N], key and value [B,T,K,N] -> [B,S,H,N].

    Scores go through a soft `cap` unless it is 0. Where the backend refuses, the plain one
    computes, with a warning that gives the reason.
    """
    if backend == AUTO:
        backend = FASTEST.get(sharding.platform(), "plain")
    reason = BACKENDS[backend].refuses(query, key, mask, cap)
    if reason:
        warnings.warn(
            f"attention {backend!r} {reason}; the plain one computes, with all scores in memory",
            stacklevel=2,
        )
        backend = "plain"
    return BACKENDS[backend].attention(query, key, value, mask, cap)


__all__ = ["AUTO", "BACKENDS", "Mask", "attention", "soft_cap"]
