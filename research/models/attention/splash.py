"""Splash attention: the fast path on TPU, a kernel of JAX's own (jax.experimental.pallas).

Blocks of scores that no row sees are neither computed nor read, and scores never leave the chip.
Documents are told apart by the kernel, grouped keys are not repeated. The kernel knows nothing of
meshes: each device runs it on its own rows, heads and queries, and has all keys of its rows
(devices that share the tokens of a row gather keys and values, which are few). Late queries see
more than early ones: so that such devices have the same work, each takes one chunk of the row and
the one as far from the row's end, and gives the results back.
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

LANES = 128  # what block sizes and head sizes are a multiple of
BLOCK = 512


def refuses(query: jax.Array, key: jax.Array, mask: Mask, cap: float) -> str | None:
    """Why this call is not for the kernel, or None."""
    s, (t, k) = query.shape[1], key.shape[1:3]
    parts, tensor = sharding.shard_count("sequence"), sharding.shard_count("heads")
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
    axes = sharding.mesh_axes("sequence")
    parts, tensor = sharding.shard_count("sequence"), sharding.shard_count("heads")
    query = query * jnp.asarray(n**-0.5, query.dtype)
    query, key, value = (_pad(x.swapaxes(1, 2)) for x in (query, key, value))  # [B,H,S,N]
    # in a window all queries see the same number of keys
    swaps = parts > 1 and not mask.window and s % (2 * parts * LANES) == 0
    order = _order(s, parts) if swaps else None
    kernel = _kernel(s, h // tensor, parts, mask.window, cap, interpret, order)
    run_rows = jax.vmap(lambda kernel, *row: kernel(*row), in_axes=(None, 0, 0, 0, 0))

    def call(kernel: Any, query: jax.Array, *rest: Any) -> jax.Array:
        if not swaps:
            return run_rows(kernel, query, *rest)
        return _swap(run_rows(kernel, _swap(query, axes, parts), *rest), axes, parts, back=True)

    asks = mask.segments if order is None else mask.segments[:, order]
    segments = splash.SegmentIds(asks, mask.key_segments)
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty:
        over = sharding.current_spec
        queries = over(("batch", "heads", "sequence", None))
        keys = over(("batch", "kv_heads", None, None))
        ids: Any = (over(("batch", "sequence")), over(("batch", None)))
        blocks = NamedSharding(mesh, PartitionSpec(None, axes or None))
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


def _order(s: int, parts: int) -> np.ndarray:
    """[S]: which tokens' queries the devices have, one device after the other, if each takes one of
    twice as many chunks from the front and the one as far from the end."""
    chunks = np.arange(s).reshape(2 * parts, -1)
    return np.concatenate([chunks[[n, 2 * parts - 1 - n]].ravel() for n in range(parts)])


def _swap(x: jax.Array, axes: tuple[str, ...], parts: int, back: bool = False) -> jax.Array:
    """Under shard_map: a device's part of x [B,H,S,N] in the row's order -> in `_order`'s, or back.

    Two exchanges: chunks of even number, one of each device, go to different devices; odd ones too.
    """
    goes = lambda chunk: min(chunk, 2 * parts - 1 - chunk)  # noqa: E731
    ways = [[(n, goes(2 * n + odd)) for n in range(parts)] for odd in (0, 1)]
    first, second = jnp.split(x, 2, axis=2)
    # even devices have a chunk of even number from the front, odd ones from the end
    turned = jax.lax.axis_index(axes) % 2 == 1
    choose = lambda a, b: (jnp.where(turned, b, a), jnp.where(turned, a, b))  # noqa: E731
    if back:
        ways = [[(there, here) for here, there in way] for way in ways]
        first, second = choose(first, second)
    first, second = (
        jax.lax.ppermute(chunk, axes, way) for chunk, way in zip((first, second), ways, strict=True)
    )
    if not back:
        first, second = choose(first, second)
    return jnp.concatenate([first, second], axis=2)


def _kernel(
    s: int,
    heads: int,
    parts: int,
    window: int,
    cap: float,
    interpret: bool,
    order: np.ndarray | None = None,
) -> Any:
    """The kernel for one device's heads, with what blocks its queries see.

    Args:
      order: [S] tokens of the queries, if not in the row's order.
    """
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    seen: Any = splash.CausalMask((s, s), shard_count=parts)
    if window:
        seen = splash.LocalMask((s, s), (window - 1, 0), 0, shard_count=parts)
    if order is not None:
        seen.q_sequence = order.astype(np.int32)
    block = math.gcd(BLOCK, s // parts if order is None else s // (2 * parts))
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
