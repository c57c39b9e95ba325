"""Cross-entropy in chunks of the sequence, so that the `[B,S,V]` logits never exist.

`token_losses` gives every token's loss, for evaluation. `summed_losses` gives their weighted sums,
for training: it takes the gradient of each chunk while its logits are in memory, so that they are
computed once. (`jax.checkpoint` would compute them again in the backward pass, a sixth of the step
of a small model with a large vocabulary.)
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from research import sharding
from research.batch import Array
from research.losses import cross_entropy, vocabulary_chunks
from research.losses.cross_entropy import CrossEntropy, TokenLosses
from research.models.sites import Context


def token_losses(
    model: Any, hidden: jax.Array, targets: Array, context: Context | None, config: CrossEntropy
) -> TokenLosses:
    """Losses [B,S] of hidden states [B,S,D] against targets [B,S].

    For evaluation, and for losses that read them: its gradient is right, but keeps all logits.
    """
    if config.vocabulary_chunks:
        return vocabulary_chunks.token_losses(hidden, *_whole_head(model), targets, config)
    project = model.projection()
    is_random = context is not None and context.keys is not None

    def body(_, chunk):
        hidden, targets, *columns = chunk
        here = _with_columns(context, *columns) if columns else context
        return None, _losses(project(hidden, here), targets, config)[0]

    arrays = (hidden, targets, *([_columns(targets)] if is_random else []))
    return _scan_chunks(body, None, arrays, config.chunk)[1]


def summed_losses(
    model: Any,
    hidden: jax.Array,
    targets: Array,
    weights: Array,
    context: Context | None,
    config: CrossEntropy,
) -> TokenLosses:
    """Sums of weights [B,S] times losses. Only `loss` has a gradient, for hidden and model.

    Raises:
      ValueError: chunks of the vocabulary that do not fit the head.
    """
    if config.vocabulary_chunks:
        head = _whole_head(model)
        return vocabulary_chunks.summed_losses(hidden, *head, targets, weights, config)
    leaves, structure = jax.tree.flatten(model.projection())
    sums = _weighted_sums((config, structure), leaves, hidden, (targets, weights, context))
    return TokenLosses(sums.loss, *map(jax.lax.stop_gradient, sums[1:]))


def _whole_head(model: Any) -> tuple[jax.Array, float]:
    """The head's kernel [D,V] and its soft cap, for chunks of the vocabulary."""
    head = model.head
    if head.site:
        raise ValueError("loss.vocabulary_chunks: the head has a delta, which needs it whole")
    return model.embedding.kernel[...].T if head.kernel is None else head.kernel[...], head.cap


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _weighted_sums(static: Any, leaves: list[Any], hidden: jax.Array, rest: Any) -> TokenLosses:
    """The sums; `static` is (config, tree structure of the projection), `rest` has no gradient."""
    config, structure = static
    project = jax.tree.unflatten(structure, leaves)
    targets, weights, context = rest

    def body(total, chunk):
        hidden, targets, weights, columns = chunk
        logits = project(hidden, _with_columns(context, columns))
        losses = _losses(logits, targets, config)[0]
        return jax.tree.map(lambda t, x: t + jnp.sum(x * weights), total, losses), None

    zeros = TokenLosses(*(jnp.zeros((), jnp.float32),) * 3)
    arrays = (hidden, targets, weights, _columns(targets))
    return _scan_chunks(body, zeros, arrays, config.chunk)[0]


def _weighted_sums_forward(static: Any, leaves: list[Any], hidden: Any, rest: Any):
    """The sums, and the gradients of `loss` with respect to hidden and the trainable leaves."""
    config, structure = static
    is_trainable = [leaf.perturbed for leaf in leaves]
    leaves, hidden, rest = jax.tree.map(lambda x: x.value, (leaves, hidden, rest))
    targets, weights, context = rest
    trainable = [leaf for leaf, trains in zip(leaves, is_trainable, strict=True) if trains]

    def body(total, chunk):
        hidden, targets, weights, columns = chunk

        def compute_logits(trainable, hidden):
            remaining = iter(trainable)
            all_leaves = [
                next(remaining) if trains else leaf
                for leaf, trains in zip(leaves, is_trainable, strict=True)
            ]
            project = jax.tree.unflatten(structure, all_leaves)
            return project(hidden, _with_columns(context, columns))

        logits, vjp = jax.vjp(compute_logits, trainable, hidden)
        losses, logits_grad = _losses(logits, targets, config)
        leaves_grad, hidden_grad = vjp(logits_grad * weights[..., None])
        sums = jax.tree.map(lambda x: jnp.sum(x * weights), losses)
        return jax.tree.map(jnp.add, total, (sums, leaves_grad)), hidden_grad

    sums = TokenLosses(*(jnp.zeros((), jnp.float32),) * 3)
    zeros = (sums, jax.tree.map(jnp.zeros_like, trainable))
    arrays = (hidden, targets, weights, _columns(targets))
    (sums, leaves_grad), hidden_grad = _scan_chunks(body, zeros, arrays, config.chunk)
    remaining = iter(leaves_grad)
    gradients = [next(remaining) if trains else None for trains in is_trainable]
    return sums, (gradients, hidden_grad)


def _weighted_sums_backward(static: Any, gradients: Any, cotangents: TokenLosses):
    return *jax.tree.map(lambda x: (cotangents.loss * x).astype(x.dtype), gradients), None


_weighted_sums.defvjp(_weighted_sums_forward, _weighted_sums_backward, symbolic_zeros=True)


def _columns(targets: Array) -> jax.Array:
    """[B,S] the column of each token, for dropout in a delta of the head."""
    return jax.lax.broadcasted_iota(jnp.int32, targets.shape, 1)


def _with_columns(context: Context | None, columns: jax.Array) -> Context | None:
    return context and dataclasses.replace(context, columns=columns)


def _losses(
    logits: jax.Array, targets: Array, config: CrossEntropy
) -> tuple[TokenLosses, jax.Array]:
    """Losses [B,C] of logits [B,C,V], and the gradient of `loss` with respect to the logits."""
    max_logit = jnp.max(logits, axis=-1)
    exp_logits = jnp.exp(logits - max_logit[..., None])
    if sharding.platform() == "cpu":  # else XLA fuses exp into the sum, which is slower there
        exp_logits = jax.lax.optimization_barrier(exp_logits)
    total = jnp.sum(exp_logits, axis=-1)
    log_z = max_logit + jnp.log(total)
    target_logit = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    mean = jnp.mean(logits, axis=-1) if config.label_smoothing else 0.0
    losses = cross_entropy.losses(max_logit, log_z, target_logit, mean, config)
    vocabulary = logits.shape[-1]
    token_ids = jax.lax.broadcasted_iota(targets.dtype, logits.shape, logits.ndim - 1)
    is_target = token_ids == targets[..., None]
    probs = exp_logits / total[..., None]
    return losses, cross_entropy.logits_grad(probs, log_z, is_target, vocabulary, config)


def _scan_chunks(
    body: Callable[[Any, Any], tuple[Any, Any]], init: Any, arrays: Any, chunk: int
) -> tuple[Any, Any]:
    """A scan over chunks of columns: arrays [B,S,...], padded to whole chunks -> outputs [B,S,...].

    Where devices share a row's tokens, each chunk takes its columns from all of them.
    """
    b, s = jax.tree.leaves(arrays)[0].shape[:2]
    devices = sharding.shard_count("sequence")
    device_columns = s // devices
    chunk = max(1, min(chunk, s) // devices)
    count = -(-device_columns // chunk)
    if count == 1:
        return body(init, arrays)

    def split(x: jax.Array) -> jax.Array:  # [B,S,...] -> [count,B,devices*chunk,...]
        x = x.reshape(b, devices, device_columns, *x.shape[2:])
        padding = (0, count * chunk - device_columns)
        x = jnp.pad(x, ((0, 0), (0, 0), padding) + ((0, 0),) * (x.ndim - 3))
        x = jnp.moveaxis(x.reshape(b, devices, count, chunk, *x.shape[3:]), 2, 0)
        return x.reshape(count, b, devices * chunk, *x.shape[4:])

    def join(x: jax.Array) -> jax.Array:  # the inverse of `split`
        x = jnp.moveaxis(x.reshape(count, b, devices, chunk, *x.shape[3:]), 0, 2)
        x = x.reshape(b, devices, count * chunk, *x.shape[4:])[:, :, :device_columns]
        return x.reshape(b, s, *x.shape[3:])

    carry, outputs = jax.lax.scan(body, init, jax.tree.map(split, arrays))
    return carry, jax.tree.map(join, outputs)
