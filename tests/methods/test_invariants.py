"""What every method must pass, whatever it attaches and wherever."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import methods, sharding, tree
from research import step as stepping
from research.losses import sequence_chunks
from research.losses.cross_entropy import CrossEntropy
from research.methods import LoRA
from research.methods.pissa import Principal
from research.models.sites import Context, Weight
from research.optim.adamw import AdamW
from research.sharding import MeshConfig
from tests.helpers import rounding, tiny
from tests.methods.cases import BANKS, BESIDE, BIASED, CASES, GAP, GROWTH, SHAPE

forward = jax.jit(tiny.logits)
merge = jax.jit(methods.merge, static_argnames="adapter")
train_step = jax.jit(stepping.train_step, static_argnames="step_config")
every_case = pytest.mark.parametrize("case", CASES)
# one that acts on weights, one on what goes through them, one on the tokens
LIGHT = ("dora", "lora", "prompt")
every_case_in_time = pytest.mark.parametrize(
    "case", [pytest.param(c, marks=[] if c in LIGHT else [pytest.mark.heavy]) for c in CASES]
)
# of those that lie on devices in one way, one
ON_A_MESH = (*LIGHT, "ia3", "vera", "oft", "prefix-mlp", "houlsby", "full", "l2-sp", *BANKS)
and_beside = pytest.mark.parametrize(
    "case",
    [c if c in LIGHT else pytest.param(c, marks=pytest.mark.heavy) for c in [*CASES, *BESIDE]],
)


def method_of(case):
    return BANKS[case] if case in BANKS else (CASES | BESIDE)[case].method


def shape_of(case):
    return BIASED if case in BESIDE else SHAPE


def attached(case):
    return tiny.attached(method_of(case), shape_of(case))


@functools.cache
def base_logits():
    return np.asarray(forward(tiny.model(SHAPE), tiny.batch()))


@every_case_in_time
def test_the_start_is_the_base_or_is_said_not_to_be(case):
    ours = np.asarray(forward(attached(case), tiny.batch()))
    start = CASES[case].start
    if start is None:
        limit = rounding.bound(tiny.ROUNDINGS, np.abs(base_logits()).max())
        assert np.abs(ours - base_logits()).max() > 10 * limit
    else:
        rounding.assert_close(ours, base_logits(), roundings=start or tiny.ROUNDINGS)
    if start == 0:
        assert np.array_equal(*(tiny.plain_logits(m) for m in (attached(case), tiny.model(SHAPE))))


@every_case_in_time
def test_merged_equals_attached_where_it_can_be_merged_at_all(case):
    method, model = method_of(case), tiny.shaken(attached(case))
    if not CASES[case].merges:
        message = r"cannot be merged|no adapter named"
        with pytest.raises(ValueError, match=message):
            methods.merge(model, method.adapter)
        return
    before = tree.flatten(model)
    merged = merge(model, adapter=method.adapter)
    after = tree.flatten(model)
    assert all(np.array_equal(before[name], after[name]) for name in before)
    merged_names, base_names = (
        set(tree.unstack_shapes(tree.flatten(m))) for m in (merged, tiny.model(SHAPE))
    )
    assert merged_names == base_names
    expected = np.asarray(forward(model, tiny.batch()))
    scale = GROWTH * np.abs(expected).max()
    actual = forward(merged, tiny.batch())
    rounding.assert_close(actual, expected, roundings=tiny.ROUNDINGS, scale=scale)
    assert np.abs(expected - base_logits()).max() > 10 * rounding.bound(tiny.ROUNDINGS, scale)


@and_beside
def test_only_what_is_named_or_attached_trains_and_all_of_it_does(case):
    model = attached(case)
    before, names = tree.flatten(model), set(methods.trainable(model, method_of(case)))
    if case in CASES:
        assert names <= set(before) - set(tree.flatten(tiny.model(SHAPE)))
    _, after = short_run(case)
    for name, leaf in before.items():
        is_changed = np.asarray(leaf) != after[f"model/{name}"]
        if name in names:  # in every layer
            layers = len(leaf) if tree.is_stacked(name) else 1
            assert is_changed.reshape(layers, -1).any(1).all(), name
        else:
            assert not is_changed.any(), name
    owners = {name for name in after if name.startswith("optimizer/")}
    assert owners and all(any(f"/{n}/" in owner for n in names) for owner in owners)


@pytest.mark.heavy
@pytest.mark.parametrize("case", ON_A_MESH)
def test_neither_mesh_nor_order_of_devices_counts(case):
    losses, state = short_run(case)
    # tokens in front of a row do not divide over devices that share it
    mesh = MeshConfig(2, 2, 2) if "prompt" in case else MeshConfig(1, 2, 2, 2)
    mesh_losses, mesh_state = short_run(case, mesh, (3, 1, 4, 0, 6, 7, 2, 5))
    rounding.assert_close(mesh_losses, losses, roundings=tiny.ROUNDINGS)
    count = tiny.GRADIENT_ROUNDINGS
    scale = rounding.moved(3, learning_rate=1e-2, epsilon=1e-2)  # as short_run
    for name, leaf in state.items():
        if name.startswith("model/"):
            rounding.assert_close(
                mesh_state[name], leaf, roundings=count, scale=scale, err_msg=name
            )


@functools.cache
def short_run(case, mesh=None, order=range(8)):
    """Losses and the last state of three steps, with dropout inside the method."""
    method, model = method_of(case), attached(case)
    devices = [jax.devices()[i] for i in order]
    mesh = (mesh or MeshConfig(data=1)).make(devices if mesh else devices[:1])
    names = methods.trainable(model, method)
    # a large epsilon: without it Adam turns rounding of tiny gradients into whole steps
    hooks = method if method.has_hooks else None
    plan = stepping.StepConfig(names, AdamW(epsilon=1e-2), method=hooks)
    # no decay: it moves what no gradient reaches
    hyper, rules, losses = tiny.hyper(names, dropout=0.1, weight_decay=0.0), sharding.RULES, []
    batch = tiny.batch()
    if case in BANKS:  # a row of -1 is the base's
        batch = dataclasses.replace(batch, adapter=np.arange(8, dtype=np.int32) % 3 - 1)
    with sharding.mesh_context(mesh, rules):
        state = stepping.init_state(model, plan)
        axes, flat = tree.parameter_axes(model), tree.flatten(state)
        parameters = sharding.shardings(axes, tree.flatten(model), mesh, rules)
        shardings = sharding.state_shardings(flat, parameters, mesh)
        state = jax.device_put(state, tree.unflatten(state, shardings))
        batch = jax.device_put(batch, sharding.batch_sharding(mesh, rules))
        for _ in range(3):
            state, metrics = train_step(state, batch, hyper, plan)
            losses.append(float(metrics["loss"]))
    assert np.isfinite(losses).all()
    return losses, {name: np.asarray(leaf) for name, leaf in tree.flatten(state).items()}


@every_case_in_time
def test_what_is_attached_does_not_depend_on_how_layers_are_grouped(case):
    stacked_leaves = tree.unstack(tree.flatten(attached(case)))
    single_layers = tiny.attached(
        method_of(case), tiny.config(tie_embeddings=False, max_scan_layers=1)
    )
    single_leaves = tree.unstack(tree.flatten(single_layers))
    assert set(stacked_leaves) == set(single_leaves)
    for name in stacked_leaves:  # pissa: singular vectors, which rounding moves, and of either sign
        actual, expected = np.abs(stacked_leaves[name]), np.abs(single_leaves[name])
        rounding.assert_close(actual, expected, roundings=10, scale=expected.max() / GAP)


@every_case_in_time
def test_documents_of_a_packed_row_see_what_is_attached_and_not_each_other(case):
    tiny.check_documents_apart(forward, tiny.shaken(attached(case)))


@pytest.mark.parametrize("case", [*CASES, *BESIDE])
def test_trained_parameters_are_as_many_as_arithmetic_says(case):
    model = tiny.abstract(method_of(case), shape_of(case))
    sizes = {name: math.prod(leaf.shape) for name, leaf in tree.flatten(model).items()}
    trained = sum(sizes[name] for name in methods.trainable(model, method_of(case)))
    assert trained == (CASES | BESIDE)[case].parameters


def test_every_method_has_a_case():
    cases = [case.method for case in (CASES | BESIDE).values()]
    kinds = {method.kind for method in (*cases, *BANKS.values())}
    assert kinds == set(methods.METHODS) - {"classifier"}  # tests/losses/test_head.py


@pytest.mark.heavy
# what a layer hands to the next: arrays of its own, shared ones, tokens, and weights themselves
@pytest.mark.parametrize("case", [*LIGHT, "vera", "prefix-mlp", "lora-and-prompt", "full"])
def test_recomputing_leaves_the_gradients_as_they_are(case):
    plain_gradients, remat_gradients = gradients(case, "none"), gradients(case, "full")
    for all_gradients in (plain_gradients, remat_gradients):
        assert all(np.abs(leaf).max() > 0 for leaf in all_gradients.values())
    assert set(plain_gradients) == set(methods.trainable(attached(case), method_of(case)))
    for name, leaf in plain_gradients.items():
        count, scale = tiny.GRADIENT_ROUNDINGS, GROWTH * np.abs(leaf).max()
        gradient = remat_gradients[name]
        rounding.assert_close(gradient, leaf, roundings=count, scale=scale, err_msg=name)


def gradients(case, remat):
    """Of the trained leaves, away from their start."""
    method, shape = method_of(case), dataclasses.replace(shape_of(case), remat=remat)
    model = tiny.shaken(tiny.attached(method, shape))
    trainable, frozen = tree.partition(model, methods.trainable(model, method))
    batch = tiny.batch()

    def loss(trainable):
        losses = stepping.forward(tree.merge(model, trainable, frozen), batch, None, CrossEntropy())
        return (losses.nll * batch.weights).sum()

    return jax.jit(jax.grad(loss))(trainable)


@every_case
def test_what_is_attached_lies_where_the_weights_lie_that_it_acts_on(case):
    """So no product with it moves more than the base's own does."""
    model = tiny.abstract(method_of(case), SHAPE)
    flat, mesh = tree.flatten(model), MeshConfig(1, 2, 1, 4).make(jax.devices())
    axes = tree.parameter_axes(model)
    shardings = sharding.shardings(axes, flat, mesh, sharding.RULES)

    def spec(name):
        """The mesh axes of each axis."""
        placed_axes = tuple(shardings[name].spec)
        return placed_axes + (None,) * (flat[name].ndim - len(placed_axes))

    count = 0
    for name, leaf in flat.items():
        place, in_site, _ = name.partition("/site/")
        if not in_site or f"{place}/kernel" not in flat:
            continue
        stacked = int(tree.is_stacked(name))
        kernel = f"{place}/kernel"
        sides, logical = flat[kernel].shape[stacked:], axes[kernel][stacked:]
        for length, axis, part in zip(leaf.shape, axes[name], spec(name), strict=True):
            if sides[0] != sides[1] and length in sides:
                assert axis == logical[sides.index(length)], name
            if axis in logical:
                assert part == spec(kernel)[stacked + logical.index(axis)], name
                count += part is not None
    assert count or not CASES[case].merges  # something was compared
    names = methods.trainable(model, method_of(case))
    state = functools.partial(stepping.init_state, step_config=stepping.StepConfig(names, AdamW()))
    state = tree.flatten(jax.eval_shape(state, model))
    moments = sharding.state_shardings(state, shardings, mesh)
    for name in names:
        own = [n for n in (f"optimizer/{name}/mu", f"optimizer/{name}/nu") if n in state]
        assert len(own) == 2 and all(moments[n].spec == shardings[name].spec for n in own), own


@every_case
def test_a_method_says_whether_its_sites_drop(case):
    model = tiny.abstract(method_of(case), shape_of(case))
    context = Context(keys=jax.random.split(jax.random.key(0), 8), adapter_dropout=np.float32(0.5))
    program = str(jax.make_jaxpr(tiny.logits)(model, tiny.batch(), context))
    assert ("random_bits" in program) == method_of(case).drops


def test_dropout_inside_a_method_is_the_same_for_both_halves_of_pissa():
    model, batch = attached("pissa"), tiny.batch()
    keys = jax.random.split(jax.random.key(0), 8)
    dropped = forward(model, batch, Context(keys=keys, adapter_dropout=np.float32(0.5)))
    rounding.assert_close(dropped, base_logits(), roundings=tiny.ROUNDINGS)


def test_pissas_one_chain_has_the_values_and_gradients_of_its_two_products():
    random = np.random.default_rng(0)

    def draw(*shape):
        return jnp.asarray(random.normal(size=shape), jnp.float32)

    x, y, slope, weight = draw(2, 5, 8), draw(2, 5, 6), draw(2, 5, 6), Weight(draw(8, 6), None)
    delta = tiny.shaken(Principal(jax.random.key(0), weight, (None, None), 3, jnp.float32(1.5)))

    def ours(delta, x):
        return jnp.sum(slope * delta.product(x, y, Context()))

    def plain(delta, x):
        products = [sign * x @ a @ b for a, b, sign in delta.pairs()]
        return jnp.sum(slope * delta.scale[...] * sum(products))

    actual, want = (jax.value_and_grad(f, (0, 1))(delta, x) for f in (ours, plain))
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(want))
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(want), strict=True):
        # sums over inputs, rank and outputs, and over rows and outputs for the total
        rounding.assert_close(a, b, roundings=8 + 3 + 6 + 10 * 6, scale=scale)
    assert all(np.abs(leaf).max() > 0.1 for leaf in jax.tree.leaves(actual))


@pytest.mark.parametrize("mesh", [None, (1, 2, 1, 4)], ids=["one device", "mesh"])
def test_what_a_delta_of_the_head_drops_does_not_depend_on_chunks(mesh):
    model, batch = tiny.shaken(attached("lora-ends")), tiny.batch()
    hidden = np.random.default_rng(0).normal(size=(8, 16, 32)).astype(np.float32)
    keys = jax.random.split(jax.random.key(0), 8)

    @functools.partial(jax.jit, static_argnums=0)
    def total(chunk, rate):
        context = Context(keys=keys, adapter_dropout=rate)
        arguments = batch.targets, batch.weights, context, CrossEntropy(chunk=chunk)
        return sequence_chunks.summed_losses(model, hidden, *arguments).loss

    one_chunk = total(16, np.float32(0.5))
    with sharding.mesh_context(mesh and MeshConfig(*mesh).make(), sharding.RULES):
        # sums over width, rank, vocabulary and tokens, whose losses are all positive
        count = 32 + 4 + 64 + 8 * 16
        rounding.assert_close(total(5, np.float32(0.5)), one_chunk, roundings=count)
    # far above rounding
    assert abs(total(16, np.float32(0.0)) - one_chunk) > 1e-3 * abs(one_chunk)


def test_layers_of_one_stack_may_differ_in_alpha():
    method = LoRA(rank=2, alphas=((r"layers/1/.*", 8.0),))
    assert methods.derive_stacks(SHAPE, method) == ("0-2",)
    arrays = tree.unstack(tree.flatten(tiny.attached(method, SHAPE)))
    scales = [float(arrays[f"layers/{i}/mlp/up/site/lora/scale"]) for i in range(3)]
    assert scales == [16.0, 4.0, 16.0]
