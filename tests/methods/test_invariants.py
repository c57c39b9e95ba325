"""What every method must pass, whatever it attaches and wherever."""

import dataclasses
import functools
import math

import jax
import numpy as np
import pytest

from research import methods, sharding, tree
from research import step as stepping
from research.loss import LossConfig
from research.methods import LoRA
from research.models.sites import Context
from research.optimizers import OptimizerConfig
from research.sharding import MeshConfig
from tests import tiny
from tests.methods.cases import CASES, EXACT, MERGED, OTHER, ROUNDED, SHAPE

forward = jax.jit(tiny.logits)
merge = jax.jit(methods.merge, static_argnames="adapter")
train_step = jax.jit(stepping.train_step, static_argnames="plan")
every_case = pytest.mark.parametrize("case", CASES)


def attached(case):
    return tiny.attached(CASES[case], SHAPE)


@functools.cache
def base_logits():
    return np.asarray(forward(tiny.model(SHAPE), tiny.batch()))


@every_case
def test_the_start_is_the_base_or_is_said_not_to_be(case):
    ours = np.asarray(forward(attached(case), tiny.batch()))
    difference = np.abs(ours - base_logits()).max()
    if case in EXACT:
        assert np.array_equal(ours, base_logits())
    elif case in ROUNDED:
        assert difference <= ROUNDED[case] * np.abs(base_logits()).max()
    else:
        assert case in OTHER and difference > 1e-4


@every_case
def test_merged_equals_attached_where_it_can_be_merged_at_all(case):
    method, model = CASES[case], tiny.shaken(attached(case))
    if case not in MERGED:
        message = r"cannot be merged|no adapter named"
        with pytest.raises(ValueError, match=message):
            methods.merge(model, method.adapter)
        return
    before = tree.flatten(model)
    merged = merge(model, adapter=method.adapter)
    after = tree.flatten(model)
    assert all(np.array_equal(before[name], after[name]) for name in before)
    layers = lambda model: set(tree.unstack_shapes(tree.flatten(model)))  # noqa: E731
    assert layers(merged) == layers(tiny.model(SHAPE))
    expected = np.asarray(forward(model, tiny.batch()))
    np.testing.assert_allclose(forward(merged, tiny.batch()), expected, rtol=1e-4, atol=1e-4)
    assert np.abs(expected - base_logits()).max() > 1e-2


@every_case
def test_only_what_was_attached_trains_and_all_of_it_does(case):
    method, before = CASES[case], tree.flatten(attached(case))
    names = set(methods.trainable(attached(case), method))
    assert names <= set(before) - set(tree.flatten(tiny.model(SHAPE)))
    _, after = short_run(case)
    for name, leaf in before.items():
        assert np.array_equal(leaf, after[f"model/{name}"]) == (name not in names), name
    owners = {name for name in after if name.startswith("optimizer/")}
    assert owners and all(any(f"/{n}/" in owner for n in names) for owner in owners)


@pytest.mark.heavy
@every_case
def test_neither_mesh_nor_order_of_devices_counts(case):
    losses, after = short_run(case)
    again, moved = short_run(case, MeshConfig(2, 2, 2), (3, 1, 4, 0, 6, 7, 2, 5))
    np.testing.assert_allclose(again, losses, atol=2e-5)
    for name, leaf in after.items():
        if name.startswith("model/"):
            np.testing.assert_allclose(moved[name], leaf, atol=2e-5, err_msg=name)


@functools.cache
def short_run(case, mesh=None, order=range(8)):
    """Losses and the last state of three steps, with dropout inside the method."""
    method, model = CASES[case], attached(case)
    devices = [jax.devices()[i] for i in order]
    mesh = (mesh or MeshConfig(data=1)).make(devices if mesh else devices[:1])
    names = methods.trainable(model, method)
    # a large epsilon: without it Adam turns rounding of tiny gradients into whole steps
    plan = stepping.Plan(names, OptimizerConfig(epsilon=1e-2))
    hyper, rules, losses = tiny.hyper(names, dropout=0.1), sharding.RULES, []
    with sharding.use(mesh, rules):
        state = stepping.init_state(model, plan)
        axes, flat = tree.parameter_axes(model), tree.flatten(state)
        parameters = sharding.shardings(axes, tree.flatten(model), mesh, rules)
        placed = sharding.state_shardings(flat, parameters, mesh)
        state = jax.device_put(state, tree.unflatten(state, placed))
        batch = jax.device_put(tiny.batch(), sharding.batch_sharding(mesh, rules))
        for _ in range(3):
            state, metrics = train_step(state, batch, hyper, plan)
            losses.append(float(metrics["loss"]))
    assert np.isfinite(losses).all()
    return losses, {name: np.asarray(leaf) for name, leaf in tree.flatten(state).items()}


@every_case
def test_what_is_attached_does_not_depend_on_how_layers_are_grouped(case):
    whole = tree.unstack(tree.flatten(attached(case)))
    single = tiny.attached(CASES[case], tiny.config(tied=False, longest_stack=1))
    cut = tree.unstack(tree.flatten(single))
    assert set(whole) == set(cut)
    for name in whole:  # pissa: singular vectors, which rounding moves, and of either sign
        np.testing.assert_allclose(np.abs(whole[name]), np.abs(cut[name]), atol=3e-5)


@every_case
def test_documents_of_a_packed_row_see_what_is_attached_and_not_each_other(case):
    model, packed = tiny.shaken(attached(case)), tiny.batch(rows=2, documents=2)
    out = np.asarray(forward(model, packed))
    for number in (1, 2):
        place = np.flatnonzero(packed.segments[0] == number)
        alone = jax.tree.map(lambda x, place=place: x[:, place], packed)
        alone.segments[...] = 1
        np.testing.assert_allclose(out[:, place], forward(model, alone), atol=1e-4)


@every_case
def test_trained_parameters_are_as_many_as_arithmetic_says(case):
    d, f, k, layers, v = 32, 48, 16, 3, 64
    linears = {"query": (d, d), "key": (d, k), "value": (d, k), "output": (d, d)}
    linears |= {"gate": (d, f), "up": (d, f), "down": (f, d)}
    low = lambda rank, sides: rank * sum(sides)  # noqa: E731
    every = sum(low(4, sides) for sides in linears.values())
    outputs = sum(out for _, out in linears.values())
    houlsby = (d + 1) * 8 + (8 + 1) * d
    second = sum(low(2, sides) for sides in linears.values())
    pattern = second + 2 * sum(
        low(8 if name in ("gate", "up", "down") else 4, sides) for name, sides in linears.items()
    )
    expected = {
        "lora": layers * every,
        "lora-patterns": pattern,
        "lora-ends": layers * every + 2 * low(4, (v, d)),
        "pissa": layers * every,
        "dora": layers * (every + outputs),
        "ia3": layers * (2 * k + f),
        "houlsby": layers * 2 * houlsby,
        "pfeiffer": layers * houlsby,
        "parallel": layers * 2 * houlsby,
        "vera": layers * (7 * 8 + outputs),
        "loha": 2 * layers * every,
        "prompt": 3 * d,
        "prompt-random": 3 * d,
        "prompt-text": 3 * d,
        "prompt-labels": 3 * d,
        "prefix": layers * 2 * 3 * k,
        "prefix-mlp": 3 * d + d * 8 + 8 + layers * (8 + 1) * 2 * k,
    }
    model = tiny.abstract(CASES[case], SHAPE)
    sizes = {name: math.prod(leaf.shape) for name, leaf in tree.flatten(model).items()}
    assert sum(sizes[name] for name in methods.trainable(model, CASES[case])) == expected[case]


@pytest.mark.heavy
@every_case
def test_recomputing_leaves_the_gradients_as_they_are(case):
    plain, again = gradients(case, "none"), gradients(case, "full")
    moving = {name for name, leaf in plain.items() if np.abs(leaf).max() > 0}
    assert moving == {name for name, leaf in again.items() if np.abs(leaf).max() > 0} != set()
    for name, leaf in plain.items():
        np.testing.assert_allclose(again[name], leaf, atol=1e-5 * np.abs(leaf).max(), err_msg=name)


def gradients(case, remat):
    """Of the trained leaves, away from their start."""
    method, shape = CASES[case], dataclasses.replace(SHAPE, remat=remat)
    model = tiny.shaken(tiny.attached(method, shape))
    trainable, frozen = tree.partition(model, methods.trainable(model, method))
    batch = tiny.batch()

    def loss(trainable):
        losses = stepping.forward(tree.merge(model, trainable, frozen), batch, None, LossConfig())
        return (losses.nll * batch.weights).sum()

    return jax.jit(jax.grad(loss))(trainable)


def test_dropout_inside_a_method_is_the_same_for_both_halves_of_pissa():
    model, batch = attached("pissa"), tiny.batch()
    keys = jax.random.split(jax.random.key(0), 8)
    dropped = forward(model, batch, Context(keys=keys, site_dropout=np.float32(0.5)))
    np.testing.assert_allclose(dropped, base_logits(), atol=1e-4)


def test_layers_of_one_stack_may_differ_in_alpha():
    method = LoRA(rank=2, alphas=((r"layers/1/.*", 8.0),))
    assert methods.derive_stacks(SHAPE, method) == ("0-2",)
    arrays = tree.unstack(tree.flatten(tiny.attached(method, SHAPE)))
    scales = [float(arrays[f"layers/{i}/mlp/up/site/lora/scale"]) for i in range(3)]
    assert scales == [16.0, 4.0, 16.0]
