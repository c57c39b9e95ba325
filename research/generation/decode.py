"""Batched decoding with a cache: one prefill of all prompts, then a token a step."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from research.generation.sampling import Sampling, sample
from research.methods import bank
from research.models.sites import Context
from research.models.transformer import Cache

GREEDY = Sampling()
ROUND = 64  # prompt lengths are rounded up to this, so that few programs serve many prompts


@functools.partial(jax.jit, static_argnames=("slots",))
def _prefill(model: Any, tokens, lengths, adapter, slots: int) -> tuple[jax.Array, Cache]:
    """Prompts [B,S] with their lengths [B] -> logits [B,V] after the last token, and the cache."""
    b, s = tokens.shape
    positions = jnp.broadcast_to(jnp.arange(s), (b, s))
    segments = (positions < lengths[:, None]).astype(jnp.int32)
    context = Context(adapter=adapter)
    cache = model.empty_cache(b, slots)
    activations, cache = model.hidden(tokens, segments, positions, None, context, cache)
    last = jnp.take_along_axis(activations, lengths[:, None, None] - 1, axis=1)
    return model.logits(last, context)[:, 0], cache


@functools.partial(jax.jit, donate_argnames=("cache",))
def _advance(model: Any, token, position, adapter, cache: Cache) -> tuple[jax.Array, Cache]:
    """One token [B] at its position [B] -> logits [B,V] for the next one, and the cache."""
    context = Context(adapter=adapter)
    ones = jnp.ones_like(token)[:, None]
    activations, cache = model.hidden(
        token[:, None], ones, position[:, None], None, context, cache, first=False
    )
    return model.logits(activations, context)[:, 0], cache


@jax.jit
def _draw(logits, seed, step, temperature, top_k, top_p) -> jax.Array:
    key = jax.random.fold_in(jax.random.key(seed), step)
    keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(len(logits)))
    return sample(logits, keys, temperature, top_k, top_p)


def stream(
    model: Any,
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    end_id: int,
    sampling: Sampling = GREEDY,
    adapter: np.ndarray | None = None,
    stops: Sequence[int] = (),
) -> Iterator[np.ndarray]:
    """Yields the next token of every row, [B] int32, until all rows have ended.

    Args:
      model: a `Transformer`.
      prompts: B token sequences, begin token included, of any lengths from 1.
      new_tokens: most tokens to add to a row.
      end_id: a row that has generated this is finished and repeats only it.
      adapter: [B] which adapter each row uses.
      stops: other tokens that finish a row, such as the end of a turn.

    Raises:
      ValueError: for an empty prompt, a text longer than the model's learned positions, or an
        adapter that its bank has not.
    """
    if not prompts or any(len(prompt) == 0 for prompt in prompts):
        raise ValueError("a prompt holds no token; give at least the begin token")
    lengths = np.asarray([len(prompt) for prompt in prompts], np.int32)
    width = -(-int(lengths.max()) // ROUND) * ROUND
    tokens = np.zeros((len(prompts), width), np.int32)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = prompt
    if adapter is not None:
        bank.check_numbers(model, adapter)
    extra = prompt_length(model)
    model.config.check_length(int(lengths.max()) + new_tokens + extra)
    slots = -(-(width + new_tokens + extra) // ROUND) * ROUND
    logits, cache = _prefill(model, tokens, lengths, adapter, slots)
    numbers = (sampling.temperature, sampling.top_k, sampling.top_p)
    is_done = np.zeros(len(prompts), bool)
    # a prompt method's own tokens come first, in rows that use it: positions restart after them
    position = lengths + (extra if adapter is None else extra * (np.asarray(adapter) >= 0))
    for step in range(new_tokens):
        token = np.where(is_done, end_id, np.asarray(_draw(logits, sampling.seed, step, *numbers)))
        is_done |= np.isin(token, (end_id, *stops))
        yield token.astype(np.int32)
        if is_done.all() or step == new_tokens - 1:
            return
        logits, cache = _advance(model, token.astype(np.int32), position, adapter, cache)
        position = position + 1


def generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    end_id: int,
    sampling: Sampling = GREEDY,
    adapter: np.ndarray | None = None,
    stops: Sequence[int] = (),
) -> list[list[int]]:
    """The new tokens of every row, without the token that ended it; see `stream`."""
    columns = list(stream(model, prompts, new_tokens, end_id, sampling, adapter, stops))
    rows, ends = np.stack(columns, axis=1).tolist(), {end_id, *stops}
    return [list(itertools.takewhile(lambda token: token not in ends, row)) for row in rows]


def prompt_length(model: Any) -> int:
    """Number of prompt tokens that the embedding's site puts in front of a row."""
    one, row = (jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((1, 1), (1,)))

    def embed(model: Any, tokens: jax.Array, adapter: jax.Array) -> jax.Array:
        return model.embedding(tokens, jnp.float32, Context(adapter=adapter))

    return jax.eval_shape(embed, model, one, row).shape[1] - 1
