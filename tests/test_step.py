"""The train step: meshes, accumulation, dropout, skipping, optimizers."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from research import methods, sharding, tree
from research import step as stepping
from research.methods import Full, LoRA, Partial
from research.optim import optimizers, schedules
from research.optim.adamw import AdamW
from research.optim.schedules import ScheduleConfig
from research.sharding import MeshConfig
from tests.helpers import rounding, tiny

train_step = jax.jit(stepping.train_step, static_argnames="step_config")
FULL = Full()


def run(method=FULL, steps=2, mesh=None, dropout=None, batch=None, order=None, **settings):
    """Losses and final parameters of a short run."""
    devices = jax.devices() if order is None else [jax.devices()[i] for i in order]
    mesh = (mesh or MeshConfig(data=1)).make(devices if mesh else devices[:1])
    model = tiny.attached(method)
    names = methods.trainable(model, method)
    # a large epsilon: without it Adam turns rounding of tiny gradients into whole steps
    step_config = stepping.StepConfig(names, AdamW(epsilon=1e-2), **settings)
    hyper = tiny.hyper(names, dropout=dropout)
    rules = sharding.RULES
    with sharding.mesh_context(mesh, rules):
        state = stepping.init_state(model, step_config)
        flat = tree.flatten(state)
        parameters = sharding.shardings(
            tree.parameter_axes(model), tree.flatten(model), mesh, rules
        )
        shardings = sharding.state_shardings(flat, parameters, mesh)
        state = jax.device_put(state, tree.unflatten(state, shardings))
        batch = jax.device_put(batch or tiny.batch(), sharding.batch_sharding(mesh, rules))
        losses = []
        for _ in range(steps):
            state, metrics = train_step(state, batch, hyper, step_config)
            losses.append(float(metrics["loss"]))
    return losses, {name: np.asarray(leaf) for name, leaf in tree.flatten(state).items()}, metrics


@functools.cache
def on_one_device():
    return run(dropout=0.1)


def assert_same_run(actual, expected, steps=2):
    rounding.assert_close(actual[0], expected[0], roundings=tiny.ROUNDINGS)
    count = tiny.GRADIENT_ROUNDINGS
    scale = rounding.moved(steps, learning_rate=1e-2, epsilon=1e-2)  # as in run
    for name, leaf in expected[1].items():
        if name.startswith("model/"):
            rounding.assert_close(actual[1][name], leaf, roundings=count, scale=scale, err_msg=name)


@pytest.mark.parametrize(
    "mesh",
    [
        (8, 1, 1),
        (2, 2, 2),
        *(pytest.param(m, marks=pytest.mark.heavy) for m in [(1, 8, 1), (1, 4, 2), (1, 2, 2, 2)]),
    ],
    ids=lambda m: "x".join(map(str, m)),
)
def test_same_losses_and_weights_on_every_mesh(mesh):
    assert_same_run(run(dropout=0.1, mesh=MeshConfig(*mesh)), on_one_device())


def test_lora_does_not_depend_on_device_order():
    mesh = MeshConfig(2, 2, 2)
    reordered = run(LoRA(rank=4), mesh=mesh, order=(3, 1, 4, 0, 6, 7, 2, 5))
    assert_same_run(reordered, run(LoRA(rank=4), mesh=mesh))


@pytest.mark.parametrize("accumulation_steps", [2, 4])
def test_accumulated_micro_batches_equal_one_batch(accumulation_steps):
    assert_same_run(run(dropout=0.1, accumulation_steps=accumulation_steps), on_one_device())


@pytest.mark.parametrize("method", [LoRA(rank=4), Partial((r"layers/2/.*",))], ids=str)
def test_frozen_leaves_stay_bit_identical_and_trained_ones_move(method):
    model = tiny.attached(method)
    names = set(methods.trainable(model, method))
    before = tree.flatten(model)
    _, after, _ = run(method, steps=3)
    for name, leaf in before.items():
        assert np.array_equal(leaf, after[f"model/{name}"]) == (name not in names), name
    owners = {name for name in after if name.startswith("optimizer/")}
    assert owners and all(any(f"/{n}/" in owner for n in names) for owner in owners)


@pytest.mark.parametrize("where", ["weights", "model", "optimizer"])
def test_a_step_that_is_not_finite_is_skipped_and_counted(where):
    model, names = tiny.model(), tuple(tree.flatten(tiny.model()))
    batch = tiny.batch()
    if where == "weights":
        batch = dataclasses.replace(batch, weights=np.full_like(batch.weights, np.inf))
    step_config = stepping.StepConfig(names)
    state = stepping.init_state(model, step_config)
    if where == "model":
        leaves = tree.flatten(model)
        leaves["final_norm/scale"] = leaves["final_norm/scale"].at[0].set(jnp.nan)
        state = dataclasses.replace(state, model=tree.unflatten(model, leaves))
    if where == "optimizer":  # loss and gradient stay finite, the update does not
        infinite = jax.tree.map(lambda x: jnp.full_like(x, jnp.inf), state.optimizer)
        state = dataclasses.replace(state, optimizer=infinite)
    new, metrics = train_step(state, batch, tiny.hyper(names), step_config)
    assert int(metrics["skipped"]) == 1 and int(new.step) == 1
    for part in ("model", "optimizer"):
        old, now = (jax.tree.leaves(getattr(s, part)) for s in (state, new))
        assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(old, now, strict=True))


def test_an_all_masked_batch_trains_nothing():
    batch = tiny.batch()
    all_masked = dataclasses.replace(batch, weights=np.zeros_like(batch.weights))
    _, _, metrics = run(steps=1, batch=all_masked)
    assert int(metrics["skipped"]) == 1 and float(metrics["loss"]) == 0


def test_clipping_bounds_what_is_applied_and_reports_the_norm_before():
    batch = tiny.batch()
    _, _, metrics = run(steps=1, batch=batch)
    model = tiny.model()

    def loss(model):
        losses = stepping.forward(model, batch, None, stepping.CrossEntropy())
        return jnp.sum(losses.loss * batch.weights) / jnp.sum(batch.weights)

    expected = optax.tree.norm(jax.jit(jax.grad(loss))(model))
    actual = metrics["gradient_norm"]
    rounding.assert_close(actual, expected, roundings=tiny.GRADIENT_ROUNDINGS)


@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
def test_a_stacked_leaf_is_optimized_as_its_layers_are(name):
    """Also at 128 and over, where Adafactor factors."""
    config = optimizers.OPTIMIZERS[name]()
    if name == "galore":
        config = dataclasses.replace(config, projection_rank=8)
    random = np.random.default_rng(0)
    weights, gradients = jnp.asarray(random.normal(size=(2, 3, 130, 140)), jnp.float32)
    names = "layers/0-2/mlp/up/kernel", "layers/0-0/mlp/up/kernel"
    step = optimizers.make_optimizer(config, dict.fromkeys(names, ("layers", "embed", "mlp")))
    whole = {"layers/0-2/mlp/up/kernel": weights}
    updates, _ = step.update({name: gradients for name in whole}, step.init(whole), whole, step=0)
    for layer in range(3):
        one = {"layers/0-0/mlp/up/kernel": weights[layer : layer + 1]}
        alone, _ = step.update(
            {name: gradients[layer : layer + 1] for name in one}, step.init(one), one, step=0
        )
        rounding.assert_close(
            updates["layers/0-2/mlp/up/kernel"][layer],
            alone["layers/0-0/mlp/up/kernel"][0],
            roundings=5 * 3 * 140,  # Muon's: iterations, products in each, numbers in a sum
        )
    if name == "muon":  # orthogonal: all singular values alike, sized as Adam's steps are
        values = np.linalg.svd(updates["layers/0-2/mlp/up/kernel"][0], compute_uv=False)
        assert values.max() / values.min() < 2
    if name == "adafactor":
        state = tree.flatten(step.init(whole))
        assert max(leaf.size for leaf in state.values()) < weights.size / 50


def test_adamw_equals_optax():
    shape = tiny.CONFIG
    model, names = tiny.model(shape), tuple(tree.flatten(tiny.model(shape)))
    batch, config = tiny.batch(), AdamW(epsilon=1e-2)  # as in run
    step_config = stepping.StepConfig(names, config, schedule="constant")
    hyper = tiny.hyper(names, max_grad_norm=None)
    hyper = dataclasses.replace(
        hyper, schedule=schedules.Schedule.make(ScheduleConfig(1e-2, "constant"), 9)
    )
    tx = optax.adamw(1e-2, 0.9, 0.95, 1e-2, weight_decay=0.1)
    expected, state = tree.flatten(model), stepping.init_state(model, step_config)
    moments = tx.init(expected)

    @jax.jit
    def optax_step(arrays, moments):
        def loss(arrays):
            losses = stepping.forward(tree.unflatten(model, arrays), batch, None, step_config.loss)
            return jnp.sum(losses.loss * batch.weights) / jnp.sum(batch.weights)

        updates, moments = tx.update(jax.grad(loss)(arrays), moments, arrays)
        return optax.apply_updates(arrays, updates), moments

    for _ in range(3):
        state, _ = train_step(state, batch, hyper, step_config)
        expected, moments = optax_step(expected, moments)
    count = tiny.GRADIENT_ROUNDINGS
    scale = rounding.moved(3, learning_rate=1e-2, epsilon=1e-2, gradient=1.0)  # not clipped
    for name, leaf in tree.flatten(state.model).items():
        rounding.assert_close(leaf, expected[name], roundings=count, scale=scale, err_msg=name)


def test_rules_multiply_rate_and_decay_layer_by_layer():
    names = ("layers/0-2/mlp/up/kernel", "final_norm/scale")
    rules = ((r"layers/2/.*", 0.5), (r"layers/.*", 2.0))
    multipliers = stepping.multipliers(rules, names, names, "learning_rate_rules")
    assert multipliers[names[0]].tolist() == [2, 2, 0.5]
    assert float(multipliers[names[1]]) == 1
    with pytest.raises(ValueError, match=r"pattern 'layers/3/.\*' matches nothing; nearest: lay"):
        stepping.multipliers(((r"layers/3/.*", 1.0),), names, names, "learning_rate_rules")


def test_a_mesh_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="data=3 fsdp=1 tensor=1 does not fit 8 devices"):
        MeshConfig(data=3).make()
    model = tiny.model(tiny.config(width=24, heads=4, head_size=6))
    mesh = MeshConfig(data=1, fsdp=1, tensor=8).make()
    with pytest.raises(
        ValueError, match="key/kernel: axis 'kv_heads' of length 12 does not divide by 8"
    ):
        axes = tree.parameter_axes(model)
        sharding.shardings(axes, tree.flatten(model), mesh, sharding.RULES)
