"""The train step and the evaluation step: one code path for every objective and every method.

The step takes a batch, a partition of the model's leaves into trainable and frozen, and numbers.
Pretraining, full fine-tuning and LoRA differ in those alone.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from research import tree
from research.batch import SHARED, Array, Batch
from research.losses import CrossEntropy, Loss
from research.losses.base import TokenLosses
from research.losses.sequence_chunks import token_losses
from research.losses.weighted import loss_sums
from research.methods.base import Method
from research.models.sites import Context
from research.optim import optimizers, schedules
from research.optim.adamw import AdamW
from research.optim.base import Optimizer
from research.optim.schedules import Schedule

Metrics = dict[str, jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that a step changes.

    Attributes:
      step: [] int32, number of steps taken, skipped ones included.
      model: the model, a pytree of arrays.
      optimizer: Optax state of the trainable leaves only.
      memory: what the method has beside weights (`Method.memory`), by name.
      average: the moving average of the trainable leaves, by name; empty where none is asked for.
    """

    step: jax.Array
    model: Any
    optimizer: Any
    memory: tree.Arrays = dataclasses.field(default_factory=dict)
    average: tree.Arrays = dataclasses.field(default_factory=dict)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Hyper:
    """Hyper-parameters as arrays: runs that differ only in them share one compiled program.

    Attributes:
      key: random key of the run's dropout.
      schedule: numbers of the learning-rate schedule.
      learning_rate_multipliers, weight_decay_multipliers: one for each trainable leaf; [] or, for
        a stacked leaf, [L].
      weight_decay: [] decoupled weight decay.
      max_grad_norm: [] largest global norm of the gradient; None never clips.
      dropout, adapter_dropout: [] see `Context`; None compiles no dropout at all.
      loss: the numbers of the loss, see `Loss.numbers`.
      embedding_noise: [] NEFTune's alpha; None compiles none.
      average_decay: [] of the moving average of weights; None compiles none.
    """

    key: jax.Array
    schedule: Schedule
    learning_rate_multipliers: Mapping[str, Array]
    weight_decay_multipliers: Mapping[str, Array]
    weight_decay: Array
    max_grad_norm: Array | None = None
    dropout: Array | None = None
    adapter_dropout: Array | None = None
    loss: Mapping[str, Array] = dataclasses.field(default_factory=dict)
    embedding_noise: Array | None = None
    average_decay: Array | None = None


@dataclasses.dataclass(frozen=True)
class StepConfig:
    """What the compiled program depends on; runs with equal configs and shapes share one."""

    # names of the trainable leaves, see `methods.trainable`
    trainable: tuple[str, ...]
    optimizer: Optimizer = AdamW()
    schedule: schedules.Kind = "cosine"
    # without its numbers, which `Hyper` has
    loss: Loss = CrossEntropy()
    # number of micro-batches in a step
    accumulation_steps: int = 1
    # whether the state has a moving average of the weights
    averages: bool = False
    # the method, if the step asks it (`Method.has_hooks`), without the numbers in `array_fields`
    method: Method | None = None


def init_state(model: Any, step_config: StepConfig, method: Method | None = None) -> TrainState:
    """The state before the first step.

    Args:
      method: that of the config with its numbers, if it has any.
    """
    trainable, _ = tree.partition(model, step_config.trainable)
    optimizer = _make_optimizer(model, step_config)
    method = method or step_config.method
    memory = method.memory(trainable) if method and method.has_hooks else {}
    average = trainable if step_config.averages else {}
    return TrainState(jnp.zeros((), jnp.int32), model, optimizer.init(trainable), memory, average)


def _make_optimizer(model: Any, step_config: StepConfig) -> optax.GradientTransformationExtraArgs:
    return optimizers.make_optimizer(step_config.optimizer, tree.parameter_axes(model))


def multipliers(
    rules: tree.Rules[float], trainable: Iterable[str], names: Iterable[str], what: str
) -> dict[str, jax.Array]:
    """The rules' number for each trainable leaf, 1 where none matches; [L] for a stacked leaf.

    Args:
      names: all of the model's leaves; a rule may name one that does not train.

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
    """The context of a training pass, with a key for each global row, so that mesh and accumulation
    do not change which units are dropped."""
    keys, noise = None, None
    rates = (hyper.dropout, hyper.adapter_dropout, hyper.embedding_noise)
    if any(rate is not None for rate in rates):
        key = jax.random.fold_in(hyper.key, step)
        keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(rows)
    if hyper.embedding_noise is not None:
        noise = hyper.embedding_noise * jax.lax.rsqrt(_document_lengths(batch.segments))
    return Context(batch.adapter, keys, hyper.dropout, hyper.adapter_dropout, noise=noise)


def _document_lengths(segments: Array) -> jax.Array:
    """segments [B,S] -> [B,S] float32, the number of tokens in each one's document."""

    def row(numbers: jax.Array) -> jax.Array:
        slots = numbers - SHARED  # which is the lowest
        return jnp.zeros(len(numbers) + 2).at[slots].add(1)[slots]

    return jax.vmap(row)(jnp.asarray(segments))


def forward(model: Any, batch: Batch, context: Context | None, config: CrossEntropy) -> TokenLosses:
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
    """One step: gradients of the mean loss over the whole batch, clipped, applied.

    A loss, gradient or update that is not finite leaves model and optimizer as they were; the step
    advances and `skipped` is 1. An all-masked batch has loss 0 and is skipped too.

    Returns:
      The new state and scalars: loss, nll and accuracy over trained tokens, trained_tokens (the
      sum of weights), gradient_norm before clipping, learning_rate, skipped; what the loss reports;
      of a method that adds to the loss, penalty.
    """
    trainable, frozen = tree.partition(state.model, step_config.trainable)
    loss = step_config.loss.with_numbers(hyper.loss)
    # cross-entropy weighs without them: its program is the one that it was before other losses
    counts = loss.count(batch) if loss.reads_nll else None

    def weighted_sum(trainable, batch, rows):
        model = tree.merge(state.model, trainable, frozen)
        context = row_context(batch, hyper, state.step, rows)
        hidden = last_hidden(model, batch, context)
        with jax.named_scope("loss"):
            return loss_sums(loss, model, hidden, batch, context, counts)

    # gradients and losses are sums; both are divided once, by the counts of the whole batch
    gradient_function = jax.grad(weighted_sum, has_aux=True)
    gradients, sums = _accumulate(
        gradient_function, trainable, batch, step_config.accumulation_steps
    )
    counts = counts or loss.count(batch)
    scale = 1 / jnp.maximum(counts.divisor, 1e-9)
    gradients = jax.tree.map(lambda x: x * scale, gradients)
    method, penalty, memory, active = step_config.method, None, state.memory, {}
    if method is not None:
        active = method.active(trainable, hyper.key, state.step)
        gradients, penalty = _penalize(method, trainable, memory, gradients, active)
    gradients, norm = _clip(gradients, hyper.max_grad_norm)
    is_finite = jnp.isfinite(sums.loss) & jnp.isfinite(norm) & (counts.divisor > 0)
    if penalty is not None:
        is_finite &= jnp.isfinite(penalty)

    with jax.named_scope("optimizer"):
        optimizer = _make_optimizer(state.model, step_config)
        updates, optimizer_state = optimizer.update(
            gradients, state.optimizer, trainable, step=state.step
        )
    is_finite &= jnp.isfinite(optax.tree.norm(updates))
    learning_rate = schedules.learning_rate(step_config.schedule, hyper.schedule, state.step)

    # where, not cond: both branches are cheap, and the program has no branch
    keep_finite = functools.partial(jnp.where, is_finite)
    with jax.named_scope("apply"):
        new = {
            name: keep_finite(_apply_update(name, old, updates[name], learning_rate, hyper), old)
            for name, old in trainable.items()
        }
    if method is not None:
        adjusted = method.adjust(new, gradients, memory, state.step)
        new, memory = jax.tree.map(keep_finite, adjusted, (trainable, memory))
        new = _choose(active, new, trainable)
        optimizer_state = _choose(active, optimizer_state, state.optimizer)
    optimizer_state = jax.tree.map(keep_finite, optimizer_state, state.optimizer)
    is_of_tokens = counts.tokens is counts.divisor
    token_scale = scale if is_of_tokens else 1 / jnp.maximum(counts.tokens, 1e-9)
    metrics = {
        "loss": sums.loss * scale,
        "nll": sums.nll * token_scale,
        "accuracy": sums.correct * token_scale,
        "trained_tokens": counts.tokens,
        "gradient_norm": norm,
        "learning_rate": learning_rate,
        "skipped": 1 - is_finite.astype(jnp.int32),
        **{name: value * scale for name, value in sums.metrics.items()},
    }
    if penalty is not None:
        metrics |= {"loss": metrics["loss"] + penalty, "penalty": penalty}
    average = _move_average(state, new, hyper, keep_finite)
    model = tree.merge(state.model, new, frozen)
    return TrainState(state.step + 1, model, optimizer_state, memory, average), metrics


def _accumulate(
    gradient_function: Callable[..., tuple[tree.Arrays, TokenLosses]],
    trainable: tree.Arrays,
    batch: Batch,
    steps: int,
) -> tuple[tree.Arrays, TokenLosses]:
    """Sums of gradients and losses over `steps` micro-batches."""
    rows = jnp.arange(batch.tokens.shape[0])
    if steps == 1:
        return gradient_function(trainable, batch, rows)

    def split_rows(x: Array) -> Array:
        # [B,...] -> [steps,B/steps,...], rows in turn, so that each device's rows stay its own
        return x.reshape(-1, steps, *x.shape[1:]).swapaxes(0, 1)

    def add(total, micro_batch):
        return jax.tree.map(jnp.add, total, gradient_function(trainable, *micro_batch)), None

    micro_batches = jax.tree.map(split_rows, (batch, rows))
    first = jax.tree.map(lambda x: x[0], micro_batches)
    shapes = jax.eval_shape(gradient_function, trainable, *first)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.scan(add, zeros, micro_batches)[0]


def _apply_update(
    name: str, old: jax.Array, update: jax.Array, learning_rate: jax.Array, hyper: Hyper
) -> jax.Array:
    """One leaf after decoupled weight decay (Loshchilov 2019, arXiv:1711.05101) and its update."""

    def per_layer(multiplier: Array) -> Any:
        return multiplier.reshape(multiplier.shape + (1,) * (old.ndim - multiplier.ndim))

    weight_decay = hyper.weight_decay * per_layer(hyper.weight_decay_multipliers[name])
    rate = learning_rate * per_layer(hyper.learning_rate_multipliers[name])
    return old - rate * (update + weight_decay * old)


def _penalize(
    method: Method,
    trainable: tree.Arrays,
    memory: tree.Arrays,
    gradients: tree.Arrays,
    active: tree.Arrays,
) -> tuple[tree.Arrays, jax.Array]:
    """The gradients with those of a method's penalty, zero where nothing is active, and the
    penalty."""
    penalty, slopes = jax.value_and_grad(method.penalty)(trainable, memory)
    gradients = jax.tree.map(jnp.add, gradients, slopes)
    return _choose(active, gradients, jax.tree.map(jnp.zeros_like, gradients)), penalty


def _choose(active: tree.Arrays, new: tree.Arrays, old: tree.Arrays) -> tree.Arrays:
    """By name, what is new of the layers that are active, else what is old.

    Args:
      active: bool, [] or for a stacked leaf [L]; whoever is not named is active.
      new, old: a tree of arrays for each leaf, whose stack axis is in front.
    """

    def choose(mask: jax.Array, new: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.where(mask.reshape(mask.shape + (1,) * (new.ndim - mask.ndim)), new, old)

    layers = {
        name: jax.tree.map(functools.partial(choose, mask), new[name], old[name])
        for name, mask in active.items()
    }
    return new | layers


def _clip(gradients: tree.Arrays, max_norm: Array | None) -> tuple[tree.Arrays, jax.Array]:
    """The gradients with a global norm of at most `max_norm`, and the norm that they had."""
    norm = optax.tree.norm(gradients)
    if max_norm is None:
        return gradients, norm
    scale = jnp.minimum(1.0, max_norm / jnp.maximum(norm, 1e-9))
    return jax.tree.map(lambda x: x * scale, gradients), norm


def _move_average(
    state: TrainState,
    new: tree.Arrays,
    hyper: Hyper,
    keep_finite: Callable[..., Any],
) -> tree.Arrays:
    """The moving averages after a step; their decay rises, so that the start is soon forgotten."""
    if hyper.average_decay is None:
        return state.average
    decay = jnp.minimum(hyper.average_decay, (1 + state.step) / (10 + state.step))
    return {
        name: keep_finite(new[name] + decay * (old - new[name]), old)
        for name, old in state.average.items()
    }


def eval_step(model: Any, batch: Batch) -> TokenLosses:
    """Per-token negative log-likelihood and correctness [B,S], without dropout.

    With `batch.most_targets` K the head sees K positions of a row, those that have a weight among
    them; the others are 0.
    """
    context, most = Context(batch.adapter), batch.most_targets
    if most is None or most >= batch.weights.shape[1]:
        return forward(model, batch, context, CrossEntropy())
    _, columns = jax.lax.top_k((batch.weights != 0).astype(jnp.float32), most)  # [B,K]
    hidden = jnp.take_along_axis(last_hidden(model, batch, context), columns[..., None], axis=1)
    targets = jnp.take_along_axis(batch.targets, columns, axis=1)
    losses = token_losses(model, hidden, targets, context, CrossEntropy())
    rows = jnp.arange(len(columns))[:, None]
    return jax.tree.map(
        lambda part: jnp.zeros(batch.weights.shape, part.dtype).at[rows, columns].set(part), losses
    )
