"""The train step and the evaluation step: one code path for every objective and every method.

The step knows a batch, a partition of the model's leaves and numbers. Pretraining, full
fine-tuning and LoRA differ in those alone.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from research import tree
from research.batch import Array, Batch
from research.losses.sequence_chunks import LossConfig, TokenLosses, summed_losses, token_losses
from research.models.sites import Context
from research.optim import optimizers, schedules
from research.optim.optimizers import OptimizerConfig
from research.optim.schedules import Schedule

Metrics = dict[str, jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that a step changes.

    Attributes:
      step: [] int32, steps taken, skipped ones included.
      model: the model, a pytree of arrays.
      optimizer: Optax state of the trainable leaves only.
    """

    step: jax.Array
    model: Any
    optimizer: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Hyper:
    """Numbers that a run can vary without another compilation.

    Attributes:
      key: random key of the run's dropout.
      schedule: numbers of the learning-rate schedule.
      rates, decays: for each trainable leaf, what multiplies the rate and the decay; [] or, for
        a stacked leaf, [L].
      decay: [] decoupled weight decay.
      clip: [] largest global norm of the gradient; None never clips.
      dropout, adapter_dropout: [] see `Context`; None compiles no dropout at all.
    """

    key: jax.Array
    schedule: Schedule
    learning_rate_multipliers: Mapping[str, Array]
    weight_decay_multipliers: Mapping[str, Array]
    weight_decay: Array
    max_grad_norm: Array | None = None
    dropout: Array | None = None
    adapter_dropout: Array | None = None


@dataclasses.dataclass(frozen=True)
class StepConfig:
    """What fixes the program of a step; two runs with equal plans and shapes share one."""

    # names of the leaves that train, see `methods.trainable`
    trainable: tuple[str, ...]
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: schedules.Kind = "cosine"
    loss: LossConfig = LossConfig()
    # micro-batches that one step adds up
    accumulation_steps: int = 1


def init_state(model: Any, step_config: StepConfig) -> TrainState:
    """The state before the first step."""
    trainable, _ = tree.partition(model, step_config.trainable)
    state = optimizers.make_optimizer(step_config.optimizer, tree.parameter_axes(model)).init(
        trainable
    )
    return TrainState(jnp.zeros((), jnp.int32), model, state)


def multipliers(
    rules: tree.Rules[float], trainable: Iterable[str], names: Iterable[str], what: str
) -> dict[str, jax.Array]:
    """The rules' number for each trainable leaf (1 where none matches), one a layer in stacks.

    Args:
      names: all of the model's leaves; a rule may speak of what another method trains.

    Raises:
      ValueError: a pattern that matches none of them.
    """
    tree.check_patterns([pattern for pattern, _ in rules], names, what)
    values = {name: tree.match_layers(rules, name, 1.0) for name in trainable}
    return {
        name: jnp.asarray(value if tree.is_stacked(name) else value[0], jnp.float32)
        for name, value in values.items()
    }


def row_context(batch: Batch, hyper: Hyper, step: jax.Array, rows: jax.Array) -> Context:
    """The context of training: a key for each global row, so that mesh and accumulation do not
    change which units are dropped."""
    keys = None
    if hyper.dropout is not None or hyper.adapter_dropout is not None:
        key = jax.random.fold_in(hyper.key, step)
        keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(rows)
    return Context(batch.adapter, keys, hyper.dropout, hyper.adapter_dropout)


def forward(model: Any, batch: Batch, context: Context | None, config: LossConfig) -> TokenLosses:
    """Losses [B,S] of a batch."""
    hidden = last_hidden(model, batch, context)
    return token_losses(model, hidden, batch.targets, context, config)


def last_hidden(model: Any, batch: Batch, context: Context | None) -> jax.Array:
    """Hidden states [B,S,D] of a batch, ready for the head."""
    inputs = batch.tokens, batch.segments, batch.positions, batch.prefix
    return model.hidden(*inputs, context, shared=batch.shared)[0]


def train_step(
    state: TrainState, batch: Batch, hyper: Hyper, step_config: StepConfig
) -> tuple[TrainState, Metrics]:
    """One step: gradients of the weighted mean loss over the whole batch, clipped, applied.

    A loss, gradient or update that is not finite leaves model and optimizer as they were; the step
    advances and `skipped` is 1. An all-masked batch has loss 0 and is skipped too.

    Returns:
      The new state and scalars: loss, nll and accuracy over trained tokens, trained_tokens (the
      sum of weights), gradient_norm before clipping, learning_rate, skipped.
    """
    trainable, frozen = tree.partition(state.model, step_config.trainable)

    def sums(trainable, batch, rows):
        model = tree.merge(state.model, trainable, frozen)
        context = row_context(batch, hyper, state.step, rows)
        hidden = last_hidden(model, batch, context)
        with jax.named_scope("loss"):
            losses = summed_losses(
                model, hidden, batch.targets, batch.weights, context, step_config.loss
            )
        return losses.loss, losses

    gradient = jax.grad(sums, has_aux=True)
    rows = jnp.arange(batch.tokens.shape[0])
    if step_config.accumulation_steps == 1:
        gradients, losses = gradient(trainable, batch, rows)
    else:
        # rows are dealt out in turn, so that each device's rows stay its own
        def split_rows(x):
            return x.reshape(-1, step_config.accumulation_steps, *x.shape[1:]).swapaxes(0, 1)

        parts = jax.tree.map(split_rows, (batch, rows))

        def add(total, part):
            return jax.tree.map(jnp.add, total, gradient(trainable, *part)), None

        first = jax.tree.map(lambda x: x[0], parts)
        shapes = jax.eval_shape(gradient, trainable, *first)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        (gradients, losses), _ = jax.lax.scan(add, zeros, parts)
    weight = jnp.sum(batch.weights)
    scale = 1 / jnp.maximum(weight, 1e-9)
    gradients = jax.tree.map(lambda x: x * scale, gradients)
    norm = optax.tree.norm(gradients)
    if hyper.max_grad_norm is not None:
        clip_scale = jnp.minimum(1.0, hyper.max_grad_norm / jnp.maximum(norm, 1e-9))
        gradients = jax.tree.map(lambda x: x * clip_scale, gradients)
    is_finite = jnp.isfinite(losses.loss) & jnp.isfinite(norm) & (weight > 0)

    with jax.named_scope("optimizer"):
        make_optimizer = optimizers.make_optimizer(
            step_config.optimizer, tree.parameter_axes(state.model)
        )
        updates, optimizer = make_optimizer.update(gradients, state.optimizer, trainable)
    is_finite &= jnp.isfinite(optax.tree.norm(updates))
    rate = schedules.learning_rate(step_config.schedule, hyper.schedule, state.step)

    def apply(name: str) -> jax.Array:
        old = trainable[name]
        spread = lambda x: x.reshape(x.shape + (1,) * (old.ndim - x.ndim))  # noqa: E731
        weight_decay = hyper.weight_decay * spread(hyper.weight_decay_multipliers[name])
        new = old - rate * spread(hyper.learning_rate_multipliers[name]) * (
            updates[name] + weight_decay * old
        )
        return jnp.where(is_finite, new, old)

    with jax.named_scope("apply"):
        trained = {name: apply(name) for name in trainable}
    keep = functools.partial(jnp.where, is_finite)
    optimizer = jax.tree.map(keep, optimizer, state.optimizer)
    metrics = {
        "loss": losses.loss * scale,
        "nll": losses.nll * scale,
        "accuracy": losses.correct * scale,
        "trained_tokens": weight,
        "gradient_norm": norm,
        "learning_rate": rate,
        "skipped": 1 - is_finite.astype(jnp.int32),
    }
    model = tree.merge(state.model, trained, frozen)
    return TrainState(state.step + 1, model, optimizer), metrics


def eval_step(model: Any, batch: Batch) -> TokenLosses:
    """Per-token negative log-likelihood and correctness [B,S], without dropout."""
    return forward(model, batch, Context(batch.adapter), LossConfig())
