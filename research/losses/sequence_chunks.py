"""Losses in chunks of the sequence, so that the `[B,S,V]` logits never exist.

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
from research.losses.base import Loss, TokenLosses
from research.losses.cross_entropy import CrossEntropy
from research.models.sites import Context

# what a loss reads beside logits: of cross-entropy targets [B,S], of others a batch's columns
Inputs = Any


def token_losses(
    model: Any, hidden: jax.Array, inputs: Inputs, context: Context | None, loss: Loss
) -> TokenLosses:
    """Losses [B,S] of hidden states [B,S,D].

    For evaluation, and for losses that read them: its gradient is right, but keeps all logits.
    """
    if isinstance(loss, CrossEntropy) and loss.vocabulary_chunks:
        return vocabulary_chunks.token_losses(hidden, *_whole_head(model), inputs, loss)
    project = model.projection()
    is_random = context is not None and context.keys is not None

    def body(_, chunk):
        hidden, inputs, *columns = chunk
        here = _with_columns(context, *columns) if columns else context
        return None, _losses(project(hidden, here), inputs, loss)[0]

    arrays = (hidden, inputs, *([_columns(hidden)] if is_random else []))
    return scan_chunks(body, None, arrays, loss.chunk)[1]


def summed_losses(
    model: Any,
    hidden: jax.Array,
    inputs: Inputs,
    weights: Array,
    context: Context | None,
    loss: Loss,
) -> TokenLosses:
    """Sums of weights [B,S] times losses. Only `loss` has a gradient, for hidden and model.

    Raises:
      ValueError: chunks of the vocabulary that do not fit the head.
    """
    if isinstance(loss, CrossEntropy) and loss.vocabulary_chunks:
        head = _whole_head(model)
        return vocabulary_chunks.summed_losses(hidden, *head, inputs, weights, loss)
    leaves, structure = jax.tree.flatten(model.projection())
    # a static loss has no traced numbers
    numbers = {name: getattr(loss, name) for name in loss.array_fields}
    static = (loss.without_numbers(), structure)
    sums = _weighted_sums(static, leaves, hidden, (inputs, weights, context, numbers))
    stop = jax.lax.stop_gradient
    return TokenLosses(sums.loss, stop(sums.nll), stop(sums.correct), stop(sums.metrics))


def _whole_head(model: Any) -> tuple[jax.Array, float]:
    """The head's kernel [D,V] and its soft cap, for chunks of the vocabulary."""
    head = model.head
    if head.site:
        raise ValueError("loss.vocabulary_chunks: the head has a delta, which needs it whole")
    return model.embedding.kernel[...].T if head.kernel is None else head.kernel[...], head.cap


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _weighted_sums(static: Any, leaves: list[Any], hidden: jax.Array, rest: Any) -> TokenLosses:
    """The sums; `static` is (loss, tree structure of the projection), `rest` has no gradient."""
    project = jax.tree.unflatten(static[1], leaves)
    inputs, weights, context, numbers = rest
    loss = static[0].with_numbers(numbers)

    def body(total, chunk):
        hidden, inputs, weights, columns = chunk
        logits = project(hidden, _with_columns(context, columns))
        losses = _losses(logits, inputs, loss)[0]
        return jax.tree.map(lambda t, x: t + jnp.sum(x * weights), total, losses), None

    arrays = (hidden, inputs, weights, _columns(hidden))
    return scan_chunks(body, _zero_sums(loss), arrays, loss.chunk)[0]


def _weighted_sums_forward(static: Any, leaves: list[Any], hidden: Any, rest: Any):
    """The sums, and the gradients of `loss` with respect to hidden and the trainable leaves."""
    structure = static[1]
    is_trainable = [leaf.perturbed for leaf in leaves]
    leaves, hidden, rest = jax.tree.map(lambda x: x.value, (leaves, hidden, rest))
    inputs, weights, context, numbers = rest
    loss = static[0].with_numbers(numbers)
    trainable = [leaf for leaf, trains in zip(leaves, is_trainable, strict=True) if trains]

    def body(total, chunk):
        hidden, inputs, weights, columns = chunk

        def compute_logits(trainable, hidden):
            remaining = iter(trainable)
            all_leaves = [
                next(remaining) if trains else leaf
                for leaf, trains in zip(leaves, is_trainable, strict=True)
            ]
            project = jax.tree.unflatten(structure, all_leaves)
            return project(hidden, _with_columns(context, columns))

        logits, vjp = jax.vjp(compute_logits, trainable, hidden)
        losses, logits_grad = _losses(logits, inputs, loss)
        leaves_grad, hidden_grad = vjp(logits_grad * weights[..., None])
        sums = jax.tree.map(lambda x: jnp.sum(x * weights), losses)
        return jax.tree.map(jnp.add, total, (sums, leaves_grad)), hidden_grad

    zeros = (_zero_sums(loss), jax.tree.map(jnp.zeros_like, trainable))
    arrays = (hidden, inputs, weights, _columns(hidden))
    (sums, leaves_grad), hidden_grad = scan_chunks(body, zeros, arrays, loss.chunk)
    remaining = iter(leaves_grad)
    gradients = [next(remaining) if trains else None for trains in is_trainable]
    return sums, (gradients, hidden_grad)


def _weighted_sums_backward(static: Any, gradients: Any, cotangents: TokenLosses):
    return *jax.tree.map(lambda x: (cotangents.loss * x).astype(x.dtype), gradients), None


_weighted_sums.defvjp(_weighted_sums_forward, _weighted_sums_backward, symbolic_zeros=True)


def _zero_sums(loss: Loss) -> TokenLosses:
    zero = jnp.zeros((), jnp.float32)
    return TokenLosses(zero, zero, zero, dict.fromkeys(loss.metric_names, zero))


def _columns(hidden: jax.Array) -> jax.Array:
    """[B,S] the column of each token, for dropout in a delta of the head."""
    return jax.lax.broadcasted_iota(jnp.int32, hidden.shape[:2], 1)


def _with_columns(context: Context | None, columns: jax.Array) -> Context | None:
    return context and dataclasses.replace(context, columns=columns)


def _losses(logits: jax.Array, inputs: Any, loss: Loss) -> tuple[TokenLosses, jax.Array]:
    """Losses [B,C] of logits [B,C,V], and the gradient of `loss` with respect to the logits."""
    if isinstance(loss, CrossEntropy):
        return _cross_entropies(logits, inputs, loss)

    def compute(logits: jax.Array) -> tuple[jax.Array, TokenLosses]:
        losses = loss.token_losses(logits, inputs)
        return losses.loss, losses

    _, vjp, losses = jax.vjp(compute, logits, has_aux=True)
    return losses, vjp(jnp.ones_like(losses.loss))[0]  # as no token reads another one's logits


def _cross_entropies(
    logits: jax.Array, targets: Array, config: CrossEntropy
) -> tuple[TokenLosses, jax.Array]:
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


def scan_chunks(
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
