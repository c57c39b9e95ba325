"""Cross-entropy over the vocabulary in chunks of the vocabulary, for heads that devices share.

`research.losses.sequence_chunks` computes the logits of a few columns of the sequence at a time and
needs the whole head for that. Where the head is cut over many devices, and one row is all that a
device has, the gathered head and its gradient would be the largest arrays of the step (128,256
words of width 4,096: 1 and 2 GiB). Here each device gathers one chunk of the head at a time, for
all of its tokens. The price: the logits are computed twice, once for log Z, once for the
gradient (a third more of the head's products).
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from research import sharding
from research.batch import Array
from research.losses import cross_entropy
from research.losses.cross_entropy import LossConfig, TokenLosses
from research.models.attention import soft_cap
from research.models.products import matmul, outer


def summed(
    hidden: jax.Array,
    kernel: jax.Array,
    cap: float,
    targets: Array,
    weights: Array,
    config: LossConfig,
) -> TokenLosses:
    """Sums of weights [B,S] times losses.

    Args:
      hidden: [B,S,D].
      kernel: [D,V] of the head. Only `loss` has a gradient: to hidden and kernel.
      cap: soft cap of the logits, 0 for none.

    Raises:
      ValueError: V does not divide by the chunks, or by those of a device.
    """
    sums = _summed((config, cap), hidden, kernel, (targets, weights))
    return TokenLosses(sums.loss, *map(jax.lax.stop_gradient, sums[1:]))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _summed(static: Any, hidden: jax.Array, kernel: jax.Array, given: Any):
    return _sums(static, hidden, _cut(kernel, static[0].vocabulary_chunks), *given)[0]


def _forward(static: Any, hidden: Any, kernel: Any, given: Any):
    """The sums, and the gradients of `loss`, to the kernel only where it trains."""
    trains = kernel.perturbed
    hidden, kernel, given = jax.tree.map(lambda x: x.value, (hidden, kernel, given))
    config, cap = static
    chunks = _cut(kernel, config.vocabulary_chunks)
    sums, log_z = _sums(static, hidden, chunks, *given)
    targets, weights = given

    def one(to_hidden, part):
        words, chunk = part
        logits = _logits(hidden, chunk, cap)
        probs = jnp.exp(logits - log_z[..., None])
        is_target = _is_target(targets, words)
        logits_grad = cross_entropy.logits_grad(probs, log_z, is_target, kernel.shape[1], config)
        logits_grad *= weights[..., None]
        if cap:
            logits_grad *= 1 - (logits / cap) ** 2
        logits_grad = logits_grad.astype(hidden.dtype)
        back = jnp.einsum(
            "bsc,dc->bsd", logits_grad, _gathered(chunk, hidden), preferred_element_type=jnp.float32
        )
        if not trains:
            return to_hidden + back, None
        flat = lambda x: x.reshape(-1, x.shape[-1])  # noqa: E731
        # in float32, and to where it lies: the sum over devices is never whole anywhere
        to_chunk = sharding.constrain(
            outer(flat(hidden), flat(logits_grad)), ("embed", "vocabulary")
        )
        return to_hidden + back, to_chunk

    start = sharding.constrain(jnp.zeros(hidden.shape, jnp.float32), ("batch", "sequence", None))
    to_hidden, to_chunks = jax.lax.scan(one, start, chunks)
    to_kernel = _whole(to_chunks).astype(kernel.dtype) if trains else None
    return sums, (to_hidden.astype(hidden.dtype), to_kernel)


def _backward(static: Any, kept: Any, cotangents: Any):
    return *jax.tree.map(lambda x: (cotangents.loss * x).astype(x.dtype), kept), None


_summed.defvjp(_forward, _backward, symbolic_zeros=True)


def _sums(static: Any, hidden: jax.Array, chunks: Any, targets: Array, weights: Array):
    """The sums, and log Z [B,S]."""
    config, cap = static

    def one(so_far, part):
        max_logit, total, target_logit, added = so_far
        words, chunk = part
        logits = _logits(hidden, chunk, cap)
        new_max = jnp.maximum(max_logit, jnp.max(logits, axis=-1))
        total *= jnp.exp(max_logit - new_max)
        total += jnp.sum(jnp.exp(logits - new_max[..., None]), axis=-1)
        target_logit += jnp.sum(jnp.where(_is_target(targets, words), logits, 0.0), axis=-1)
        if config.label_smoothing:
            added += jnp.sum(logits, axis=-1)
        return (new_max, total, target_logit, added), None

    zeros = sharding.constrain(jnp.zeros(targets.shape, jnp.float32), ("batch", "sequence"))
    start = (zeros - jnp.inf, zeros, zeros, zeros)
    (max_logit, total, target_logit, added), _ = jax.lax.scan(one, start, chunks)
    log_z = max_logit + jnp.log(total)
    mean = added / chunks[0].size
    losses = cross_entropy.losses(max_logit, log_z, target_logit, mean, config)
    return jax.tree.map(lambda x: jnp.sum(x * weights), losses), log_z


def _logits(hidden: jax.Array, chunk: jax.Array, cap: float) -> jax.Array:
    """hidden [B,S,D], chunk [D,C] -> [B,S,C] in float32."""
    return soft_cap(matmul(hidden, _gathered(chunk, hidden), jnp.float32), cap)


def _gathered(chunk: jax.Array, like: jax.Array) -> jax.Array:
    """All rows of a chunk, in the type of the activations."""
    return sharding.constrain(chunk.astype(like.dtype), (None, "vocabulary"))


def _is_target(targets: Array, words: jax.Array) -> jax.Array:
    """[B,S,C] bool: which of the words [C] of a chunk are asked for."""
    return words == targets[..., None]


def _cut(kernel: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """kernel [D,V] -> word numbers [count,C] and columns [count,D,C].

    Each chunk has columns of every device that shares the vocabulary.
    """
    (width, vocabulary), devices = kernel.shape, sharding.shard_count("vocabulary")
    if vocabulary % (count * devices):
        raise ValueError(
            f"loss.vocabulary_chunks {count}: a vocabulary of {vocabulary} does not divide into so "
            f"many chunks on each of {devices} devices"
        )
    words = jnp.arange(vocabulary).reshape(devices, count, -1).swapaxes(0, 1).reshape(count, -1)
    chunks = kernel.reshape(width, devices, count, -1).transpose(2, 0, 1, 3)
    chunks = chunks.reshape(count, width, -1)
    return words, sharding.constrain(chunks, (None, "embed", "vocabulary"))


def _whole(chunks: jax.Array) -> jax.Array:
    """The inverse of `_cut`: [count,D,C] -> [D,V]."""
    (count, width, _), devices = chunks.shape, sharding.shard_count("vocabulary")
    cut = chunks.reshape(count, width, devices, -1).transpose(1, 2, 0, 3)
    return sharding.constrain(cut.reshape(width, -1), ("embed", "vocabulary"))
