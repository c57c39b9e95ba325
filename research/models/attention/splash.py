"""Splash attention: the fast path on TPU, a kernel of JAX's own (jax.experimental.pallas).

Blocks of scores that no row sees are neither computed nor read, and scores never leave the chip.
Documents are told apart by the kernel, grouped keys are not repeated. The kernel knows nothing of
meshes: each device runs it on its own rows, heads and queries, and has all keys of its rows
(devices that share the tokens of a row gather keys and values, which are few).
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from research import sharding
from research.models.attention.mask import Mask

LANES = 128  # what block sizes and head sizes are a multiple of
BLOCK = 512


def refuses(query: jax.Array, key: jax.Array, mask: Mask, cap: float) -> str | None:
    """Why this call is not for the kernel, or None."""
    s, (t, k) = query.shape[1], key.shape[1:3]
    parts, tensor = sharding.parts_of("sequence"), sharding.parts_of("heads")
    if (platform := sharding.platform()) != "tpu":
        return f"runs on TPUs, not on {platform}"
    if mask.key_prefix is not None:
        return "has no bidirectional prefix"
    if mask.shared or s != t:
        return "has no keys that all documents share"
    if s % (LANES * parts):
        return f"takes lengths of a multiple of {LANES * parts}, not {s}"
    if k % tensor:
        return f"takes a number of key heads that {tensor} devices (mesh.tensor) divide, not {k}"
    return None


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: Mask,
    cap: float = 0.0,
    interpret: bool = False,
) -> jax.Array:
    """Grouped-query attention: query [B,S,H,N], key and value [B,S,K,N] -> [B,S,H,N].

    Args:
      interpret: computes what the kernel would, on any platform.
    """
    from jax.experimental.pallas.ops.tpu import splash_attention as splash  # takes a second

    s, h, n = query.shape[1:]
    parts, tensor = sharding.parts_of("sequence"), sharding.parts_of("heads")
    query = query * jnp.asarray(n**-0.5, query.dtype)
    query, key, value = (_pad(x.swapaxes(1, 2)) for x in (query, key, value))  # [B,H,S,N]
    kernel = _kernel(s, h // tensor, parts, mask.window, cap, interpret)
    call = jax.vmap(lambda kernel, *row: kernel(*row), in_axes=(None, 0, 0, 0, 0))
    segments = splash.SegmentIds(mask.segments, mask.key_segments)
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty:
        over = sharding.spec_in_use
        queries = over(("batch", "heads", "sequence", None))
        keys = over(("batch", "key_heads", None, None))
        ids: Any = (over(("batch", "sequence")), over(("batch", None)))
        blocks = NamedSharding(mesh, PartitionSpec(None, sharding.axes_of("sequence") or None))
        call = jax.shard_map(
            call,
            in_specs=(
                kernel.manual_sharding_spec(blocks),
                queries,
                keys,
                keys,
                splash.SegmentIds(*ids),
            ),
            out_specs=queries,
            check_vma=False,
        )
    run = lambda *given: call(kernel, *given)  # noqa: E731
    return _settled(run, query, key, value, segments)[..., :n].swapaxes(1, 2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _settled(run: Any, *given: Any) -> jax.Array:
    """`run(*given)`; what its gradient needs is made at once. The kernel writes the normaliser
    128 times, and XLA would keep all of them till the backward pass takes one."""
    return run(*given)


def _settled_forward(run: Any, *given: Any) -> Any:
    return jax.lax.optimization_barrier(jax.vjp(run, *given))


def _settled_backward(run: Any, pull: Any, slope: jax.Array) -> Any:
    return pull(slope)


_settled.defvjp(_settled_forward, _settled_backward)


def _kernel(s: int, heads: int, parts: int, window: int, cap: float, interpret: bool) -> Any:
    """The kernel for one device's heads, with what blocks its queries see."""
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    seen: splash.Mask = splash.CausalMask((s, s), shard_count=parts)
    if window:
        seen = splash.LocalMask((s, s), (window - 1, 0), 0, shard_count=parts)
    block = math.gcd(BLOCK, s // parts)
    sizes = splash.BlockSizes(
        block_q=block,
        block_kv=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_q_dq=block,
        block_kv_dq=block,
    )
    return splash.make_splash_mha(
        splash.MultiHeadMask([seen] * heads),
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=parts,
        attn_logits_soft_cap=cap or None,
        interpret=interpret,
    )


def _pad(x: jax.Array) -> jax.Array:
    """x [...,N] with zeros up to whole lanes, which change no score."""
    extra = -x.shape[-1] % LANES
    return jnp.pad(x, ((0, 0),) * (x.ndim - 1) + ((0, extra),)) if extra else x
