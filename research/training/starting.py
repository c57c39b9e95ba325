"""Methods whose start reads data: batches of the run, or of other data, before the first step."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp

from research import sharding, tree
from research import step as stepping
from research.batch import Batch
from research.data.pipeline import Pipeline
from research.losses import CrossEntropy
from research.losses.sequence_chunks import summed_losses
from research.models.sites import Context
from research.models.transformer import Transformer
from research.step import last_hidden
from research.training.program import Program
from research.tree import Arrays


def check_rows(program: Program, size: int) -> None:
    """Refuses a number of rows that the devices cannot share.

    Raises:
      ValueError: it does not divide over them.
    """
    parts = sharding.batch_shards(program.mesh, program.experiment.sharding_rules)
    if size % parts:
        raise ValueError(f"start_data.batch_size {size} does not divide over {parts} devices")


def start_from_data(program: Program, own: Arrays, base: Arrays, data: Pipeline) -> Arrays:
    """The run's own arrays before the first step, as its method makes them of data.

    Args:
      own, base: the two halves of the state as it starts without data.
    """
    method, size = program.experiment.method, data.config.batch_size
    rows = sharding.local_rows(program.batch_sharding, size)
    batches = [
        sharding.place_rows(data.batch(step, rows), program.batch_sharding, rows, size)
        for step in range(method.batches_to_start)
    ]
    state = tree.unflatten(program.state_shapes, {**own, **base})
    parts = sharding.batch_shards(program.mesh, program.experiment.sharding_rules)
    gradients = functools.partial(_sum_gradients, parts=parts)
    model, memory = method.start_from_data(state.model, state.memory, batches, gradients)
    leaves = tree.flatten(dataclasses.replace(state, model=model, memory=memory))
    own, _ = program.split(leaves)
    own = jax.device_put(own, {name: program.shardings[name] for name in own})
    averages = {name: jnp.copy(own[f"model/{name}"]) for name in state.average}
    return own | {f"average/{name}": leaf for name, leaf in averages.items()}


def renew(program: Program, own: Arrays, base: Arrays) -> Arrays:
    """The run's own arrays, with a memory and an average of the weights as they are now."""
    if not any(name.startswith(("memory/", "average/")) for name in own):
        return own
    method, step_config = program.experiment.method, program.step_config

    def begin(own: Arrays, base: Arrays) -> Arrays:
        model = tree.unflatten(program.state_shapes, {**own, **base}).model
        fresh = tree.flatten(stepping.init_state(model, step_config, method))
        # copies: a step gives its arrays away, and no two of them may be one
        return {n: jnp.copy(x) for n, x in fresh.items() if n.startswith(("memory/", "average/"))}

    names = jax.eval_shape(begin, own, base)
    places = {name: program.shardings[name] for name in names}
    return own | jax.jit(begin, out_shardings=places)(own, base)


def sum_gradients(
    model: Transformer,
    names: tuple[str, ...],
    batch: Batch,
    by_row: bool = False,
    parts: int = 1,
) -> Arrays:
    """Gradients of the sum of a batch's losses with respect to some leaves; see `Gradients`.

    Args:
      parts: number of devices that share the rows.
    """
    leaves, rest = tree.partition(model, names)

    def loss(leaves: Arrays, batch: Batch) -> jax.Array:
        whole = tree.merge(model, leaves, rest)
        context = Context(batch.adapter, counted=batch.weights > 0)
        hidden, places = last_hidden(whole, batch, context), (batch.targets, batch.weights)
        return summed_losses(whole, hidden, *places, context, CrossEntropy()).loss

    if not by_row:
        return jax.grad(loss)(leaves, batch)

    def add_chunk(total: Arrays, chunk: Batch) -> tuple[Arrays, None]:
        return jax.lax.scan(functools.partial(add, chunk), total, jnp.eye(parts))[0], None

    def add(chunk: Batch, total: Arrays, row: jax.Array) -> tuple[Arrays, None]:
        alone = dataclasses.replace(chunk, weights=chunk.weights * row[:, None])
        slopes = jax.grad(loss)(leaves, alone)
        return jax.tree.map(lambda x, slope: x + jnp.square(slope), total, slopes), None

    # [B,...] -> [B/parts,parts,...], a row of each device at a time
    chunks = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]).swapaxes(0, 1), batch)
    return jax.lax.scan(add_chunk, jax.tree.map(jnp.zeros_like, leaves), chunks)[0]


_sum_gradients = jax.jit(sum_gradients, static_argnames=("names", "by_row", "parts"))
