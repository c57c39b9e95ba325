"""Methods that see data before the first step: EVA's directions, EWC's Fisher information."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import methods, tree
from research import step as stepping
from research.methods import EWC, Bank, Delta, LoRA
from research.models.layers import Linear
from research.training import starting
from research.training.loop import train
from research.training.session import Session
from tests.helpers import rounding, tiny, tiny_run

RANK = 3
TARGETS = (r"layers/0/(attention/query|mlp/down)",)
EVA = LoRA(TARGETS, rank=RANK, start="eva", start_batches=2)
gradients = jax.jit(starting.sum_gradients, static_argnames=("names", "by_row", "parts"))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return tiny_run.world(tmp_path_factory.getbasetemp())


class Recorder(Delta):
    """Writes down what its place reads."""

    inputs: dict = {}

    def __init__(self, name):
        self.name = name

    def __call__(self, x, y, weight, context):
        self.inputs[self.name] = x
        return y


def inputs_of(model, batches):
    """What the targets read, [tokens,I] by place, of tokens that are no padding."""
    model = jax.tree.map(lambda leaf: leaf, model)
    for name, module in methods.places(model, Linear):
        if EVA.adapter in module.site:
            module.site["recorder"] = Recorder(name)

    @jax.jit
    def record(model, batch):
        Recorder.inputs = {}
        tiny.logits(model, batch)
        return Recorder.inputs

    parts = [(record(model, batch), batch.segments > 0) for batch in batches]
    return {n: np.concatenate([np.asarray(part[n])[k] for part, k in parts]) for n in parts[0][0]}


def test_eva_starts_from_the_principal_directions_of_what_linears_read():
    model = tiny.attached(EVA, tiny.config(layers=1))
    batches = [tiny.batch(seed=seed) for seed in range(EVA.start_batches)]
    batches = [dataclasses.replace(b, weights=(b.segments > 0).astype(np.float32)) for b in batches]
    eva_model, memory = EVA.start_from_data(model, {}, batches, gradients)
    assert memory == {}
    before, after = tree.flatten(model), tree.flatten(eva_model)
    assert set(before) == set(after)
    places = inputs_of(model, batches)
    assert len(places) == 2
    for place, x in places.items():
        name = f"{place}/site/lora/a"
        actual = np.asarray(after.pop(name)).reshape(-1, RANK).astype(np.float64)
        _, values, right = np.linalg.svd(x - x.mean(0), full_matrices=False)
        directions = right[:RANK].T
        variances = values**2
        # an eigenvector turns by rounding of the covariance over its gap
        gap = np.min(-np.diff(variances[: RANK + 1])) / variances[0]
        count = rounding.forward_roundings(tiny.CONFIG) + len(x)
        for ours, theirs in zip(actual.T, directions.T, strict=True):
            rounding.assert_close(
                np.outer(ours, ours), np.outer(theirs, theirs), roundings=count, scale=1 / gap
            )
    for name, leaf in after.items():
        assert np.array_equal(leaf, before[name]), name


def test_ewc_weighs_by_the_squared_gradients_of_rows():
    method, batch = EWC((r".*norm/scale",), strength=3.0), tiny.batch()
    model, names = tiny.model(), methods.trainable(tiny.model(), method)
    state = stepping.init_state(model, stepping.StepConfig(names, method=method))
    _, memory = method.start_from_data(model, state.memory, [batch, batch], gradients)
    leaves, rest = tree.partition(model, names)

    @jax.jit
    @jax.grad
    def loss(leaves, row):
        losses = stepping.forward(tree.merge(model, leaves, rest), row, None, CROSS_ENTROPY)
        return jnp.sum(losses.loss * row.weights)

    rows = [loss(leaves, jax.tree.map(lambda x, i=i: x[i : i + 1], batch)) for i in range(8)]
    fisher = {name: np.mean([np.square(row[name]) for row in rows], axis=0) for name in names}
    for name in names:
        actual, count = memory[f"{name}/ewc/fisher"], 2 * tiny.GRADIENT_ROUNDINGS
        rounding.assert_close(actual, fisher[name], roundings=count, err_msg=name)
    shared = gradients(model, names, batch, by_row=True, parts=4)
    for name in names:  # as devices take them, a row of each at a time
        rounding.assert_close(shared[name] / 8, fisher[name], roundings=count, err_msg=name)
    moved = {name: leaf + 0.1 for name, leaf in leaves.items()}
    expected = 0.5 * 3.0 * sum(np.sum(fisher[name] * 0.1**2) for name in names)
    rounding.assert_close(method.penalty(moved, memory), expected, roundings=count)


CROSS_ENTROPY = stepping.CrossEntropy()


@pytest.mark.heavy
@pytest.mark.parametrize("kind", ["eva", "ewc"])
def test_a_start_from_data_resumes_to_the_same_bits_and_is_another_one(world, tmp_path, kind):
    prose = dataclasses.replace(world.data(), batch_size=16)
    method = LoRA(rank=2, start="eva", start_batches=2)
    if kind == "ewc":
        method = EWC((r".*norm/scale",), strength=10.0, start_batches=2)
    tuning = functools.partial(world.tuning, method=method, start_data=prose)
    for steps, name in ((3, "run"), (6, "run"), (6, "whole")):
        train(tuning(steps), tmp_path / name)
    assert tiny_run.content(tmp_path / "run") == tiny_run.content(tmp_path / "whole")
    program, own = start_state(world, tuning(6))
    plain, _ = Session().fresh_state(program)
    changed = {name for name in plain if not np.array_equal(plain[name], own[name])}
    end = "/site/lora/a" if kind == "eva" else "/ewc/fisher"
    assert changed and all(name.endswith(end) for name in changed)
    assert {own[name].sharding for name in changed} == {program.shardings[n] for n in changed}


def start_state(world, experiment):
    session = Session()
    base, tokenizer = session.open_base_and_tokenizer(experiment)
    program = session.make_program(experiment, base)
    data, _ = session.open_data(program, tokenizer)
    with starting.sharding.mesh_context(program.mesh, experiment.sharding_rules):
        return program, session.make_state(program, None, data)[0]


def test_data_for_a_start_that_sees_none_and_no_data_for_one_that_needs_other_are_refused(world):
    with pytest.raises(ValueError, match="start_data: method lora reads no data before its"):
        world.experiment(1, method=LoRA(rank=2), start_data=world.data())
    with pytest.raises(ValueError, match="method ewc needs `start_data`"):
        world.experiment(1, method=EWC())
    with pytest.raises(ValueError, match="takes part in the step or starts from data"):
        Bank(of=EVA, names=("a", "b"))
