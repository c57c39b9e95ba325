"""Cross-entropy in chunks of the vocabulary, for heads that devices share.

`research.losses.sequence_chunks` computes the logits of a few columns of the sequence at a time and
needs the whole head for that. Where the head is sharded over many devices and a device has one row,
the gathered head and its gradient would be the largest arrays of the step (a vocabulary of 128,256
of width 4,096: 1 and 2 GiB). Here each device gathers one chunk of the head at a time, for all of
its tokens. The price: the logits are computed twice, once for log Z, once for the gradient (a
third more of the head's products).
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from research import sharding
from research.batch import Array
from research.losses import cross_entropy
from research.losses.base import TokenLosses
from research.losses.cross_entropy import CrossEntropy
from research.models.attention import soft_cap
from research.models.products import matmul, outer


def summed_losses(
    hidden: jax.Array,
    kernel: jax.Array,
    cap: float,
    targets: Array,
    weights: Array,
    config: CrossEntropy,
) -> TokenLosses:
    """Sums of weights [B,S] times losses.

    Args:
      hidden: [B,S,D].
      kernel: [D,V] of the head. Only `loss` has a gradient, for hidden and kernel.
      cap: soft cap of the logits, 0 for none.

    Raises:
      ValueError: V does not divide by the number of chunks, or by that of all devices.
    """
    sums = _weighted_sums((config, cap), hidden, kernel, (targets, weights))
    return TokenLosses(sums.loss, *map(jax.lax.stop_gradient, sums[1:]))


def token_losses(
    hidden: jax.Array, kernel: jax.Array, cap: float, targets: Array, config: CrossEntropy
) -> TokenLosses:
    """Losses [B,S], without a gradient; arguments and errors are those of `summed_losses`."""
    chunks = _split(kernel, config.vocabulary_chunks)
    return _losses_and_log_z((config, cap), hidden, chunks, targets)[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _weighted_sums(static: Any, hidden: jax.Array, kernel: jax.Array, rest: Any):
    """The sums; `static` is (config, cap), `rest` has no gradient."""
    return _sums_and_log_z(static, hidden, _split(kernel, static[0].vocabulary_chunks), *rest)[0]


def _forward(static: Any, hidden: Any, kernel: Any, rest: Any):
    """The sums, and the gradients of `loss`, of the kernel only where it trains."""
    is_trainable = kernel.perturbed
    hidden, kernel, rest = jax.tree.map(lambda x: x.value, (hidden, kernel, rest))
    config, cap = static
    chunks = _split(kernel, config.vocabulary_chunks)
    sums, log_z = _sums_and_log_z(static, hidden, chunks, *rest)
    targets, weights = rest

    def body(hidden_grad, inputs):
        token_ids, chunk = inputs
        logits = _logits(hidden, chunk, cap)
        probs = jnp.exp(logits - log_z[..., None])
        is_target = _is_target(targets, token_ids)
        logits_grad = cross_entropy.logits_grad(probs, log_z, is_target, kernel.shape[1], config)
        logits_grad *= weights[..., None]
        if cap:
            logits_grad *= 1 - (logits / cap) ** 2
        logits_grad = logits_grad.astype(hidden.dtype)
        product = jnp.einsum(
            "bsc,dc->bsd", logits_grad, _gather(chunk, hidden), preferred_element_type=jnp.float32
        )
        if not is_trainable:
            return hidden_grad + product, None
        # in float32 and sharded: the sum over devices is never whole on any of them
        chunk_grad = sharding.constrain(
            outer(_flat_rows(hidden), _flat_rows(logits_grad)), ("embed", "vocabulary")
        )
        return hidden_grad + product, chunk_grad

    zeros = sharding.constrain(jnp.zeros(hidden.shape, jnp.float32), ("batch", "sequence", None))
    hidden_grad, chunk_grads = jax.lax.scan(body, zeros, chunks)
    kernel_grad = _join(chunk_grads).astype(kernel.dtype) if is_trainable else None
    return sums, (hidden_grad.astype(hidden.dtype), kernel_grad)


def _backward(static: Any, gradients: Any, cotangents: Any):
    return *jax.tree.map(lambda x: (cotangents.loss * x).astype(x.dtype), gradients), None


_weighted_sums.defvjp(_forward, _backward, symbolic_zeros=True)


def _sums_and_log_z(static: Any, hidden: jax.Array, chunks: Any, targets: Array, weights: Array):
    """The weighted sums of losses, and log Z [B,S], in one pass over the chunks."""
    losses, log_z = _losses_and_log_z(static, hidden, chunks, targets)
    return jax.tree.map(lambda x: jnp.sum(x * weights), losses), log_z


def _losses_and_log_z(static: Any, hidden: jax.Array, chunks: Any, targets: Array):
    """Losses and log Z, [B,S] each."""
    config, cap = static

    def body(carry, inputs):
        max_logit, total, target_logit, logit_sum = carry
        token_ids, chunk = inputs
        logits = _logits(hidden, chunk, cap)
        new_max = jnp.maximum(max_logit, jnp.max(logits, axis=-1))
        total *= jnp.exp(max_logit - new_max)
        total += jnp.sum(jnp.exp(logits - new_max[..., None]), axis=-1)
        target_logit += jnp.sum(jnp.where(_is_target(targets, token_ids), logits, 0.0), axis=-1)
        if config.label_smoothing:
            logit_sum += jnp.sum(logits, axis=-1)
        return (new_max, total, target_logit, logit_sum), None

    zeros = sharding.constrain(jnp.zeros(targets.shape, jnp.float32), ("batch", "sequence"))
    init = (zeros - jnp.inf, zeros, zeros, zeros)
    (max_logit, total, target_logit, logit_sum), _ = jax.lax.scan(body, init, chunks)
    log_z = max_logit + jnp.log(total)
    mean = logit_sum / chunks[0].size
    return cross_entropy.losses(max_logit, log_z, target_logit, mean, config), log_z


def _flat_rows(x: jax.Array) -> jax.Array:
    """[B,S,N] -> [B*S,N]."""
    return x.reshape(-1, x.shape[-1])


def _logits(hidden: jax.Array, chunk: jax.Array, cap: float) -> jax.Array:
    """hidden [B,S,D], chunk [D,C] -> [B,S,C] in float32."""
    return soft_cap(matmul(hidden, _gather(chunk, hidden), jnp.float32), cap)


def _gather(chunk: jax.Array, like: jax.Array) -> jax.Array:
    """All rows of a chunk, in the type of the activations."""
    return sharding.constrain(chunk.astype(like.dtype), (None, "vocabulary"))


def _is_target(targets: Array, token_ids: jax.Array) -> jax.Array:
    """[B,S,C] bool: whether each of a chunk's token ids [C] is the target."""
    return token_ids == targets[..., None]


def _split(kernel: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """kernel [D,V] -> token ids [count,C] and columns [count,D,C].

    Each chunk has columns of every device that shares the vocabulary.
    """
    (width, vocabulary), devices = kernel.shape, sharding.shard_count("vocabulary")
    if vocabulary % (count * devices):
        raise ValueError(
            f"loss.vocabulary_chunks {count}: a vocabulary of {vocabulary} does not divide into so "
            f"many chunks on each of {devices} devices"
        )
    token_ids = jnp.arange(vocabulary).reshape(devices, count, -1).swapaxes(0, 1).reshape(count, -1)
    chunks = kernel.reshape(width, devices, count, -1).transpose(2, 0, 1, 3)
    chunks = chunks.reshape(count, width, -1)
    return token_ids, sharding.constrain(chunks, (None, "embed", "vocabulary"))


def _join(chunks: jax.Array) -> jax.Array:
    """The inverse of `_split`: [count,D,C] -> [D,V]."""
    (count, width, _), devices = chunks.shape, sharding.shard_count("vocabulary")
    x = chunks.reshape(count, width, devices, -1).transpose(1, 2, 0, 3)
    return sharding.constrain(x.reshape(width, -1), ("embed", "vocabulary"))
