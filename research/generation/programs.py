"""The compiled programs of a decoder: each for a few sizes of prompts, rows and caches."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from research import sharding
from research.generation.sampling import sample
from research.models.cache import Cache, CacheKind, KeyValues
from research.models.sites import Context


@jax.jit
def prefill(
    model: Any, tokens, lengths, adapter, earlier: KeyValues | None, first
) -> tuple[jax.Array, KeyValues]:
    """Prompts [b,S] with their lengths [b] -> logits [b,V] after the last token, and their keys.

    Args:
      earlier: of what all prompts begin with; `first` [b] is then the position of what follows.
    """
    b, s = tokens.shape
    steps = jnp.broadcast_to(jnp.arange(s), (b, s))
    segments = (steps < lengths[:, None]).astype(jnp.int32)
    positions = steps + jnp.broadcast_to(first, (b,))[:, None]
    context, is_first = Context(adapter=adapter), earlier is None
    activations, new = model.hidden(
        tokens, segments, positions, None, context, earlier, is_first, shared=False, keep=True
    )
    last = jnp.take_along_axis(activations, lengths[:, None, None] - 1, axis=1)
    return model.logits(last, context)[:, 0], new


@functools.partial(jax.jit, donate_argnames=("cache", "logits"))
def insert(cache: Cache, logits, rows, new: KeyValues, counts, earlier, new_logits):
    """The cache and logits [B,V] with those of prompts in some rows."""
    logits = logits.at[rows].set(new_logits, mode="drop")
    return cache.insert(rows, new, counts, earlier), logits


@jax.jit
def advance(
    model: Any, token, position, adapter, earlier: KeyValues
) -> tuple[jax.Array, KeyValues]:
    """One token [B] at its position [B] -> logits [B,V] for the next one, and its keys."""
    context = Context(adapter=adapter)
    activations, new = model.hidden(
        token[:, None],
        jnp.ones_like(token)[:, None],
        position[:, None],
        None,
        context,
        earlier,
        first=False,
        shared=False,
        keep=True,
    )
    return model.logits(activations, context)[:, 0], new


@functools.partial(jax.jit, donate_argnames=("cache",))
def append(cache: Cache, new: KeyValues) -> Cache:
    """A program of its own: in one with what reads the cache, XLA copies it before it writes."""
    return cache.append(new)


@functools.partial(jax.jit, static_argnames=("rows", "slots", "kind"))
def empty_cache(
    model: Any, rows: int, slots: int, kind: CacheKind | None
) -> tuple[Cache, jax.Array]:
    """An empty cache, and the logits [B,V] of its rows, which mean nothing yet: made here, they lie
    on the devices of all processes."""
    logits = jnp.zeros((rows, model.config.vocabulary), jnp.float32)
    return model.empty_cache(rows, slots, kind), sharding.constrain(logits, ("batch", None))


@functools.partial(jax.jit, static_argnames=("slots",))
def resize(cache: Cache, slots: int) -> Cache:
    return cache.resize(slots)


@jax.jit
def draw(logits, masks, seeds, steps, numbers, temperature, top_k, top_p) -> jax.Array:
    """Next tokens [B] of logits [B,V].

    Args:
      masks: [B,V/32] uint32, a bit for each token that may be drawn; None: all may.
      seeds, steps, numbers: [B] what a row's key is made of.
    """
    if masks is not None:
        bits = masks[:, :, None] >> jnp.arange(32, dtype=jnp.uint32) & 1
        may_be = bits.reshape(len(logits), -1)[:, : logits.shape[1]] == 1
        logits = jnp.where(may_be, logits, -jnp.inf)

    def key(seed: jax.Array, step: jax.Array, number: jax.Array) -> jax.Array:
        return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), step), number)

    keys = jax.vmap(key)(seeds, steps, numbers)
    tokens = sample(logits, keys, temperature, top_k, top_p)
    return sharding.constrain(tokens, (None,))  # every process looks at them
