"""Splash attention: the fast path on TPU, a kernel of JAX's own (jax.experimental.pallas).

Masked blocks of scores are neither computed nor read, and scores never leave the chip. The kernel
takes segments, and grouped keys are not repeated. It knows nothing of meshes: each device runs it
on its own rows, heads and queries, and has all keys of its rows (devices that share the tokens of a
row gather keys and values, which are few). Late queries attend to more keys than early ones: to
give such devices the same work, each takes one chunk of the row and the one as far from the row's
end, and sends the results back.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from research import sharding
from research.models.attention.mask import Mask

LANES = 128  # block sizes and head sizes are multiples of it
BLOCK = 512


def refuses(query: jax.Array, key: jax.Array, mask: Mask, cap: float) -> str | None:
    """Why the kernel cannot compute this call, or None."""
    s, (t, k) = query.shape[1], key.shape[1:3]
    devices, tensor = sharding.shard_count("sequence"), sharding.shard_count("heads")
    if (platform := sharding.platform()) != "tpu":
        return f"runs on TPUs, not on {platform}"
    if mask.key_prefix is not None:
        return "has no bidirectional prefix"
    if mask.shared or s != t:
        return "has no keys that all documents share"
    if s % (LANES * devices):
        return f"takes lengths of a multiple of {LANES * devices}, not {s}"
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
      interpret: interpret the kernel, on any platform.
    """
    from jax.experimental.pallas.ops.tpu import splash_attention as splash  # takes a second

    s, h, n = query.shape[1:]
    axes = sharding.mesh_axes("sequence")
    devices, tensor = sharding.shard_count("sequence"), sharding.shard_count("heads")
    query = query * jnp.asarray(n**-0.5, query.dtype)
    query, key, value = (_pad(x.swapaxes(1, 2)) for x in (query, key, value))  # [B,H,S,N]
    # with a window all queries attend to the same number of keys
    swaps = devices > 1 and not mask.window and s % (2 * devices * LANES) == 0
    order = _order(s, devices) if swaps else None
    kernel = _kernel(s, h // tensor, devices, mask.window, cap, interpret, order)
    run_rows = jax.vmap(lambda kernel, *row: kernel(*row), in_axes=(None, 0, 0, 0, 0))

    def call(kernel: Any, query: jax.Array, *rest: Any) -> jax.Array:
        if not swaps:
            return run_rows(kernel, query, *rest)
        return _swap(run_rows(kernel, _swap(query, axes, devices), *rest), axes, devices, back=True)

    query_segments = mask.segments if order is None else mask.segments[:, order]
    segments = splash.SegmentIds(query_segments, mask.key_segments)
    mesh = jax.sharding.get_abstract_mesh()
    if sharding.has_rules():
        spec = sharding.current_spec
        query_spec = spec(("batch", "heads", "sequence", None))
        key_spec = spec(("batch", "kv_heads", None, None))
        segment_specs: Any = (spec(("batch", "sequence")), spec(("batch", None)))
        blocks = NamedSharding(mesh, PartitionSpec(None, axes or None))
        call = jax.shard_map(
            call,
            in_specs=(
                kernel.manual_sharding_spec(blocks),
                query_spec,
                key_spec,
                key_spec,
                splash.SegmentIds(*segment_specs),
            ),
            out_specs=query_spec,
            check_vma=False,
        )
    run = functools.partial(call, kernel)
    return _with_compact_residuals(run, query, key, value, segments)[..., :n].swapaxes(1, 2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _with_compact_residuals(run: Any, *arrays: Any) -> jax.Array:
    """`run(*arrays)`, with the residuals of its gradient computed at once.

    The kernel writes the normalizer 128 times, and XLA would keep all of them until the backward
    pass takes one.
    """
    return run(*arrays)


def _residuals_forward(run: Any, *arrays: Any) -> Any:
    return jax.lax.optimization_barrier(jax.vjp(run, *arrays))


def _residuals_backward(run: Any, vjp: Any, gradient: jax.Array) -> Any:
    return vjp(gradient)


_with_compact_residuals.defvjp(_residuals_forward, _residuals_backward)


def _order(s: int, devices: int) -> np.ndarray:
    """[S] tokens in the order in which devices compute their queries, device after device.

    Of twice as many chunks as devices, each takes one from the front and the one as far from the
    end.
    """
    chunks = np.arange(s).reshape(2 * devices, -1)
    return np.concatenate([chunks[[n, 2 * devices - 1 - n]].ravel() for n in range(devices)])


def _swap(x: jax.Array, axes: tuple[str, ...], devices: int, back: bool = False) -> jax.Array:
    """Under shard_map: a device's shard of x [B,H,S,N], from the row's order to `_order`'s or back.

    Two exchanges: chunks of even number, one of each device, go to different devices; odd ones too.
    """

    def destination(chunk: int) -> int:
        return min(chunk, 2 * devices - 1 - chunk)

    routes = [[(n, destination(2 * n + odd)) for n in range(devices)] for odd in (0, 1)]
    first, second = jnp.split(x, 2, axis=2)
    # even devices have a chunk of even number from the front, odd ones from the end
    is_odd = jax.lax.axis_index(axes) % 2 == 1

    def exchange_if_odd(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jnp.where(is_odd, b, a), jnp.where(is_odd, a, b)

    if back:
        routes = [[(target, source) for source, target in route] for route in routes]
        first, second = exchange_if_odd(first, second)
    first, second = (
        jax.lax.ppermute(chunk, axes, route)
        for chunk, route in zip((first, second), routes, strict=True)
    )
    if not back:
        first, second = exchange_if_odd(first, second)
    return jnp.concatenate([first, second], axis=2)


def _kernel(
    s: int,
    heads: int,
    devices: int,
    window: int,
    cap: float,
    interpret: bool,
    order: np.ndarray | None = None,
) -> Any:
    """The kernel for one device's heads, with the blocks that its queries attend to.

    Args:
      order: [S] tokens of the queries, if not in the row's order.
    """
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    mask: Any = splash.CausalMask((s, s), shard_count=devices)
    if window:
        mask = splash.LocalMask((s, s), (window - 1, 0), 0, shard_count=devices)
    if order is not None:
        mask.q_sequence = order.astype(np.int32)
    block = math.gcd(BLOCK, s // devices if order is None else s // (2 * devices))
    sizes = splash.BlockSizes(
        block_q=block,
        block_kv=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_q_dq=block,
        block_kv_dq=block,
    )
    return splash.make_splash_mha(
        splash.MultiHeadMask([mask] * heads),
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=devices,
        attn_logits_soft_cap=cap or None,
        interpret=interpret,
    )


def _pad(x: jax.Array) -> jax.Array:
    """x [...,N] padded with zeros to a multiple of LANES, which changes no score."""
    extra = -x.shape[-1] % LANES
    return jnp.pad(x, ((0, 0),) * (x.ndim - 1) + ((0, extra),)) if extra else x
