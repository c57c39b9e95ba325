"""Optimizers against their papers, what one that acts every N steps pays, and where states lie."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import methods, sharding, tree
from research import step as stepping
from research.config import cli, schema
from research.experiment import Experiment
from research.methods import Full
from research.optim.adafactor import Adafactor
from research.optim.adamw import AdamW
from research.optim.ademamix import AdEMAMix
from research.optim.galore import GaLore
from research.optim.lion import Lion
from research.optim.muon import Muon
from research.optim.optimizers import make_optimizer
from research.sharding import MeshConfig
from tests.helpers import rounding, tiny

LEAF = "layers/0-1/mlp/up/kernel"
AXES = {LEAF: ("layers", "embed", "mlp")}
EVERY, STEPS = 3, 8


def gradients_of(shape, layers=2):
    """[steps,layers,*shape]: directions of falling size, so that the leading ones are clear."""
    random = np.random.default_rng(0)
    left, right = (random.normal(size=(STEPS, layers, n, n)) for n in shape)
    values = np.zeros(shape)
    np.fill_diagonal(values, 0.5 ** np.arange(min(shape)))
    return (left @ values @ right).astype(np.float32)


def updates_of(optimizer, gradients):
    """[steps,layers,M,N] and the states [steps] of a stacked leaf."""
    one, updates, states = make_optimizer(optimizer, AXES), [], []
    weights = {LEAF: jnp.zeros_like(gradients[0])}
    state, update = one.init(weights), jax.jit(one.update)
    for step, gradient in enumerate(gradients):
        result, state = update({LEAF: gradient}, state, weights, step=jnp.int32(step))
        updates.append(np.asarray(result[LEAF]))
        states.append(jax.tree.map(np.asarray, state[LEAF]))
    return np.stack(updates), states


def galore(gradients, bases, scale, b1, b2, epsilon):
    """Algorithm 2 of arXiv:2403.03507 for one matrix [M,N], M <= N, in numpy, with given bases."""
    first = second = np.zeros((bases[0].shape[1], gradients.shape[2]))
    for t, (gradient, basis) in enumerate(zip(gradients, bases, strict=True)):
        compact = basis.T @ gradient
        first = b1 * first + (1 - b1) * compact
        second = b2 * second + (1 - b2) * compact**2
        corrected = first / (1 - b1 ** (t + 1)), second / (1 - b2 ** (t + 1))
        yield scale * basis @ (corrected[0] / (np.sqrt(corrected[1]) + epsilon))


@pytest.mark.parametrize("shape", [(6, 10), (10, 6)], ids=["wide", "tall"])
def test_galore_is_the_algorithm_of_its_paper(shape):
    # a large epsilon: without it Adam turns rounding of small gradients into whole steps
    gradients, optimizer = gradients_of(shape), GaLore(projection_rank=2, every=EVERY, epsilon=1e-2)
    updates, states = updates_of(optimizer, gradients)
    for layer in range(2):
        wide, actual = gradients[:, layer].astype(np.float64), updates[:, layer]
        bases = [state.basis[layer] for state in states]
        if shape[0] > shape[1]:  # the other side is projected
            wide, actual = wide.swapaxes(1, 2), actual.swapaxes(1, 2)
            bases = [basis.T for basis in bases]
        for step, basis in enumerate(bases):
            left = np.linalg.svd(wide[step // EVERY * EVERY])[0][:, :2]
            # up to signs and turns; vectors move by rounding over the gap of two values, 1/2
            rounding.assert_close(basis @ basis.T, left @ left.T, roundings=2 * 2 * max(shape))
        for step, expected in enumerate(galore(wide, bases, 0.25, 0.9, 0.999, 1e-2)):
            # sums over a side and over steps, divided by epsilon at least
            scale = 0.25 * np.abs(wide).max() / 1e-2
            rounding.assert_close(actual[step], expected, roundings=10 + STEPS, scale=scale)


def test_galore_chooses_its_subspace_every_n_steps_and_pays_for_it_then_alone():
    gradients = gradients_of((6, 10))
    optimizer = GaLore(projection_rank=2, every=EVERY)
    _, states = updates_of(optimizer, gradients)
    bases = [state.basis for state in states]
    for step in range(1, STEPS):
        changes = np.abs(bases[step] - bases[step - 1]).max(axis=(1, 2)) > 0
        assert changes.tolist() == [step % EVERY == 0] * 2, step
    one = make_optimizer(optimizer, AXES)
    weights = {LEAF: jnp.zeros_like(gradients[0])}
    program = jax.make_jaxpr(one.update)(weights, one.init(weights), weights, step=jnp.int32(0))
    assert "svd" in primitives(program.jaxpr, in_branches=True)
    assert "svd" not in primitives(program.jaxpr, in_branches=False)


def primitives(jaxpr, in_branches):
    """The names of all operations; those of a `cond` only where asked for."""
    names = set()
    for equation in jaxpr.eqns:
        names.add(equation.primitive.name)
        if equation.primitive.name == "cond" and not in_branches:
            continue
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr):
            if _is_jaxpr(inner):
                names |= primitives(getattr(inner, "jaxpr", inner), in_branches)
    return names


def _is_jaxpr(node):
    return hasattr(node, "eqns") or hasattr(getattr(node, "jaxpr", None), "eqns")


def test_a_small_matrix_and_a_vector_are_not_projected():
    small = {LEAF: jnp.ones((2, 4, 3)), "final_norm/scale": jnp.ones(4)}
    axes = AXES | {"final_norm/scale": ("embed",)}
    names = tree.flatten(make_optimizer(GaLore(projection_rank=3), axes).init(small))
    assert not any("basis" in name for name in names) and len(names) == 6


def test_moments_of_low_rank_lie_as_their_parameters_do():
    model, optimizer = tiny.abstract(Full()), GaLore(projection_rank=8)
    names = methods.trainable(model, Full())
    plan = stepping.StepConfig(names, optimizer)
    state = tree.flatten(jax.eval_shape(lambda m: stepping.init_state(m, plan), model))
    mesh = MeshConfig(data=1, fsdp=2, tensor=4).make()
    parameters = sharding.shardings(
        tree.parameter_axes(model), tree.flatten(model), mesh, sharding.RULES
    )
    places = sharding.state_shardings(state, parameters, mesh)
    of = f"{LEAF.replace('0-1', '0-2')}"
    layers, rows, columns = parameters[of].spec
    assert rows and columns and layers is None
    shapes = {
        "basis": ((3, 32, 8), (None, rows, None)),
        "adam/mu": ((3, 8, 48), (None, None, columns)),
        "adam/nu": ((3, 8, 48), (None, None, columns)),
        "adam/count": ((3,), ()),
    }
    for leaf, (shape, spec) in shapes.items():
        name = f"optimizer/{of}/{leaf}"
        assert state[name].shape == shape and tuple(places[name].spec) == spec, name


def test_ademamix_is_adam_with_a_slow_moment_beside_the_fast_one():
    gradients = gradients_of((3, 4))
    b1, b2, b3, alpha, ramp = 0.8, 0.9, 0.99, 2.0, 5
    optimizer = AdEMAMix(b1=b1, b2=b2, b3=b3, alpha=alpha, ramp=ramp, epsilon=1e-2)
    updates, _ = updates_of(optimizer, gradients)
    fast = slow = second = np.zeros((2, 3, 4))
    for t, gradient in enumerate(gradients.astype(np.float64)):  # section 3 of arXiv:2409.03137
        share = min(t / ramp, 1)
        log1, log3 = np.log(b1), np.log(b3)
        slow_decay = min(np.exp(log1 * log3 / ((1 - share) * log3 + share * log1)), b3)
        fast = b1 * fast + (1 - b1) * gradient
        slow = slow_decay * slow + (1 - slow_decay) * gradient
        second = b2 * second + (1 - b2) * gradient**2
        root = np.sqrt(second / (1 - b2 ** (t + 1))) + 1e-2
        expected = (fast / (1 - b1 ** (t + 1)) + alpha * share * slow) / root
        scale = np.abs(gradients).max() / 1e-2
        rounding.assert_close(updates[t], expected, roundings=5 * STEPS, scale=scale)


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ({}, AdamW()),
        ({"epsilon": 0.1}, AdamW(epsilon=0.1)),
        ({"name": "adamw", "b1": 0.8, "b2": 0.9, "epsilon": 0.1}, AdamW(0.8, 0.9, 0.1)),
        ({"name": "lion", "b1": 0.8, "b2": 0.9, "epsilon": 0.1}, Lion(0.8, 0.9)),
        ({"name": "adafactor", "b1": 0.9, "b2": 0.95, "epsilon": 1e-8}, Adafactor()),
        ({"name": "muon", "b1": 0.9, "b2": 0.95, "epsilon": 0.1}, Muon(epsilon=0.1)),
        ({"kind": "adamw", "b1": 0.9, "b2": 0.95, "epsilon": 1e-8, "name": "lion"}, Lion()),
        ("galore", GaLore()),
        ({"kind": "galore", "projection_rank": 4}, GaLore(projection_rank=4)),
    ],
)
def test_an_optimizer_of_any_time_opens(before, now):
    config = _config() | {"optimizer": before}
    experiment = schema.build(Experiment, config)
    assert experiment.optimizer == now
    assert schema.build(Experiment, schema.to_dict(experiment)) == experiment


def test_a_constant_of_another_optimizer_is_refused():
    message = r"config\.optimizer\.projection_rank: its kind has no such key"
    with pytest.raises(ValueError, match=message):
        schema.build(Experiment, _config() | {"optimizer": {"kind": "muon", "projection_rank": 4}})
    with pytest.raises(ValueError, match=r"optimizer\.kind: there is no 'adam'; did you mean"):
        schema.build(Experiment, _config() | {"optimizer": {"kind": "adam"}})


@pytest.mark.parametrize(
    ("override", "now"),
    [
        ("optimizer.epsilon=0.1", AdamW(epsilon=0.1)),
        ("optimizer.name=lion", Lion()),
        ("optimizer=muon", Muon()),
        ('optimizer={"kind": "galore", "projection_rank": 4}', GaLore(projection_rank=4)),
    ],
)
def test_overrides_choose_an_optimizer_or_its_constants(tmp_path, override, now):
    file = tmp_path / "config.py"
    file.write_text(f"def get_config():\n    return {_config()!r}\n")
    assert cli.load(Experiment, str(file), [override]).optimizer == now


def _config():
    source = {"kind": "jsonl", "name": "a", "path": "a"}
    data = {"sources": [source], "sequence_length": 8, "batch_size": 2}
    return {"steps": 1, "init_from": "base", "data": data}
