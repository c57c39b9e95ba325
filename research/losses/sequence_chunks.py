"""Cross-entropy over the vocabulary in chunks: `[B,S,V]` logits never exist.

`token_losses` gives every token's loss, for evaluation. `summed_losses` gives their weighted sums,
for training: there the gradient of a chunk is taken while its logits are at hand, so that they are
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
from research.losses.cross_entropy import LossConfig, TokenLosses
from research.models.sites import Context


def token_losses(
    model: Any, hidden: jax.Array, targets: Array, context: Context | None, config: LossConfig
) -> TokenLosses:
    """Losses [B,S] of hidden states [B,S,D] against targets [B,S]; not made to be differentiated:
    its gradient is right, and keeps all logits."""
    project = model.projection()

    def one(hidden, targets):
        return None, _losses(project(hidden, context), targets, config)[0]

    return _over_chunks(lambda _, part: one(*part), None, (hidden, targets), config.chunk)[1]


def summed_losses(
    model: Any,
    hidden: jax.Array,
    targets: Array,
    weights: Array,
    context: Context | None,
    config: LossConfig,
) -> TokenLosses:
    """Sums of weights [B,S] times losses. Only `loss` has a gradient: to hidden and model.

    Raises:
      ValueError: chunks of the vocabulary that do not fit the head.
    """
    if config.vocabulary_chunks:
        head = model.head
        if head.site:
            raise ValueError("loss.vocabulary_chunks: the head has a delta, which needs it whole")
        kernel = model.embedding.kernel[...].T if head.kernel is None else head.kernel[...]
        return vocabulary_chunks.summed(hidden, kernel, head.cap, targets, weights, config)
    leaves, structure = jax.tree.flatten(model.projection())
    given = (targets, weights, context)
    sums = _summed((config, structure), leaves, hidden, given)
    return TokenLosses(sums.loss, *map(jax.lax.stop_gradient, sums[1:]))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _summed(static: Any, leaves: list[Any], hidden: jax.Array, given: Any) -> TokenLosses:
    config, structure = static
    project = jax.tree.unflatten(structure, leaves)
    targets, weights, context = given

    def one(total, part):
        hidden, targets, weights, columns = part
        logits = project(hidden, _of_columns(context, columns))
        losses = _losses(logits, targets, config)[0]
        return jax.tree.map(lambda t, x: t + jnp.sum(x * weights), total, losses), None

    zeros = TokenLosses(*(jnp.zeros((), jnp.float32),) * 3)
    parts = (hidden, targets, weights, _columns(targets))
    return _over_chunks(one, zeros, parts, config.chunk)[0]


def _summed_forward(static: Any, leaves: list[Any], hidden: Any, given: Any):
    """The sums, and the gradients of `loss` to hidden and to those leaves that train."""
    config, structure = static
    trains = [leaf.perturbed for leaf in leaves]
    leaves, hidden, given = jax.tree.map(lambda x: x.value, (leaves, hidden, given))
    targets, weights, context = given
    trained = [leaf for leaf, does in zip(leaves, trains, strict=True) if does]

    def one(total, part):
        hidden, targets, weights, columns = part

        def logits(trained, hidden):
            fill = iter(trained)
            whole = [next(fill) if does else leaf for leaf, does in zip(leaves, trains)]  # noqa: B905
            project = jax.tree.unflatten(structure, whole)
            return project(hidden, _of_columns(context, columns))

        values, pull = jax.vjp(logits, trained, hidden)
        losses, logits_grad = _losses(values, targets, config)
        to_leaves, to_hidden = pull(logits_grad * weights[..., None])
        sums = jax.tree.map(lambda x: jnp.sum(x * weights), losses)
        return jax.tree.map(jnp.add, total, (sums, to_leaves)), to_hidden

    sums = TokenLosses(*(jnp.zeros((), jnp.float32),) * 3)
    zeros = (sums, jax.tree.map(jnp.zeros_like, trained))
    parts = (hidden, targets, weights, _columns(targets))
    (sums, to_leaves), to_hidden = _over_chunks(one, zeros, parts, config.chunk)
    fill = iter(to_leaves)
    gradients = [next(fill) if does else None for does in trains]
    return sums, (gradients, to_hidden)


def _summed_backward(static: Any, kept: Any, cotangents: TokenLosses):
    return *jax.tree.map(lambda x: (cotangents.loss * x).astype(x.dtype), kept), None


_summed.defvjp(_summed_forward, _summed_backward, symbolic_zeros=True)


def _columns(targets: Array) -> jax.Array:
    """[B,S] the column of each token, which dropout in a delta of the head asks for."""
    return jax.lax.broadcasted_iota(jnp.int32, targets.shape, 1)


def _of_columns(context: Context | None, columns: jax.Array) -> Context | None:
    return context and dataclasses.replace(context, columns=columns)


def _losses(logits: jax.Array, targets: Array, config: LossConfig) -> tuple[TokenLosses, jax.Array]:
    """Losses [B,C] of logits [B,C,V], and the gradient of `loss` along the logits."""
    max_logit = jnp.max(logits, axis=-1)
    exp_logits = jnp.exp(logits - max_logit[..., None])
    if sharding.platform() == "cpu":  # a sum is slow over what it computes itself, not over memory
        exp_logits = jax.lax.optimization_barrier(exp_logits)
    total = jnp.sum(exp_logits, axis=-1)
    log_z = max_logit + jnp.log(total)
    target_logit = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    mean = jnp.mean(logits, axis=-1) if config.label_smoothing else 0.0
    losses = cross_entropy.losses(max_logit, log_z, target_logit, mean, config)
    vocabulary = logits.shape[-1]
    places = jax.lax.broadcasted_iota(targets.dtype, logits.shape, logits.ndim - 1)
    is_target = places == targets[..., None]
    probs = exp_logits / total[..., None]
    return losses, cross_entropy.logits_grad(probs, log_z, is_target, vocabulary, config)


def _over_chunks(
    body: Callable[[Any, Any], tuple[Any, Any]], start: Any, parts: Any, chunk: int
) -> tuple[Any, Any]:
    """A scan over columns: parts [B,S,...], padded to whole chunks -> outputs [B,S,...].

    Where P devices share a row's tokens, each chunk takes its columns from all of them.
    """
    b, s = jax.tree.leaves(parts)[0].shape[:2]
    devices = sharding.shard_count("sequence")
    own = s // devices  # columns of a device
    chunk = max(1, min(chunk, s) // devices)
    count = -(-own // chunk)
    if count == 1:
        return body(start, parts)

    def cut(x):
        x = x.reshape(b, devices, own, *x.shape[2:])
        x = jnp.pad(x, ((0, 0), (0, 0), (0, count * chunk - own)) + ((0, 0),) * (x.ndim - 3))
        x = jnp.moveaxis(x.reshape(b, devices, count, chunk, *x.shape[3:]), 2, 0)
        return x.reshape(count, b, devices * chunk, *x.shape[4:])

    def whole(x):
        x = jnp.moveaxis(x.reshape(count, b, devices, chunk, *x.shape[3:]), 0, 2)
        return x.reshape(b, devices, count * chunk, *x.shape[4:])[:, :, :own].reshape(
            b, s, *x.shape[4:]
        )

    end, outputs = jax.lax.scan(body, start, jax.tree.map(cut, parts))
    return end, jax.tree.map(whole, outputs)
