"""LISA: which layers move in a step, by what, and on what the choice depends."""

import re

import jax
import numpy as np
import pytest

from research import methods, tree
from research import step as stepping
from research.data.config import DataConfig
from research.data.sources import JsonlConfig
from research.experiment import Experiment
from research.methods import LISA, Prompt, Several
from research.optim.adamw import AdamW
from research.training.loop import train
from research.training.program import make_program
from tests.helpers import rounding, tiny, tiny_run

METHOD = LISA(active_layers=1, every=2)
STEPS = 6


def plan_of(method=METHOD):
    return stepping.StepConfig(methods.trainable(tiny.model(), METHOD), AdamW(), method=method)


@pytest.fixture(scope="module")
def history():
    """The single-layer leaves of the states before and after each step, without clipping."""
    plan, batch = plan_of(), tiny.batch()
    hyper = tiny.hyper(plan.trainable, weight_decay=0.1, max_grad_norm=None)
    state = stepping.init_state(tiny.model(), plan)
    step = jax.jit(stepping.train_step, static_argnames="step_config")
    program = step.lower(state, batch, hyper, plan).compile()  # one, whichever layers train
    leaves, metrics = [tree.unstack(tree.flatten(state))], []
    for _ in range(STEPS):
        state, numbers = program(state, batch, hyper)
        leaves.append(tree.unstack(tree.flatten(state)))
        metrics.append(numbers)
    return leaves, metrics, hyper.key


def active_layers(key, step, method=METHOD, shape=tiny.CONFIG):
    """The numbers of the layers that train in a step, the same for each of their leaves."""
    shapes = tree.flatten(tiny.abstract(method, shape))
    masks = tree.unstack(method.active(shapes, key, step))
    layers = {layer_of(name) for name, mask in masks.items() if mask}
    assert all(bool(mask) == (layer_of(name) in layers) for name, mask in masks.items())
    in_layers = {n for name in shapes for n in tree.layer_names(name) if layer_of(n) is not None}
    assert set(masks) == {name for name in in_layers if not tree.is_attached(name)}
    return layers


def layer_of(name):
    match = re.search(r"layers/(\d+)/", name)
    return match and int(match[1])


def test_layers_that_are_not_chosen_stay_to_the_bit_and_all_else_moves(history):
    leaves, metrics, key = history
    choices = []
    for step, (before, after) in enumerate(zip(leaves, leaves[1:], strict=False)):
        choices.append(active_layers(key, step))
        assert len(choices[-1]) == 1 and float(metrics[step]["learning_rate"]) > 0
        for name, leaf in before.items():  # weights, moments and their counts
            is_active = layer_of(name) is None or layer_of(name) in choices[-1]
            assert np.array_equal(leaf, after[name]) != is_active, (step, name)
    assert choices[::2] == choices[1::2] and len(set(map(frozenset, choices))) > 1


def test_the_gradients_of_active_layers_are_those_of_full_tuning_and_the_norm_is_theirs(history):
    leaves, metrics, key = history
    plan = plan_of(method=None)
    hyper = tiny.hyper(plan.trainable, weight_decay=0.1, max_grad_norm=None)
    step = jax.jit(stepping.train_step, static_argnames="step_config")
    full, _ = step(stepping.init_state(tiny.model(), plan), tiny.batch(), hyper, plan)
    (layer,) = active_layers(key, 0)
    squares = 0.0
    for name, expected in tree.unstack(tree.flatten(full)).items():
        if name.endswith("/mu") and layer_of(name) in (None, layer):
            actual, count = leaves[1][name], tiny.GRADIENT_ROUNDINGS
            rounding.assert_close(actual, expected, roundings=count, err_msg=name)
            squares += np.sum(np.square(actual / (1 - plan.optimizer.b1)))
    norm = metrics[0]["gradient_norm"]
    rounding.assert_close(norm, np.sqrt(squares), roundings=tiny.GRADIENT_ROUNDINGS)


def test_the_choice_is_one_of_seed_and_step_whatever_the_stacks_and_what_stands_beside():
    beside = Several(of=(METHOD, Prompt(length=3)))
    for step in range(0, 12, 3):
        key = jax.random.key(3)
        layers = active_layers(key, step)
        assert layers == active_layers(key, step, shape=tiny.config(max_scan_layers=1))
        assert layers == active_layers(key, step, method=beside)
    keys = jax.random.split(jax.random.key(0), 300)
    name = "layers/0-2/mlp/up/kernel"
    masks = jax.vmap(lambda key: METHOD.active({name: None}, key, 0)[name])(keys)
    # of 300 fair choices of one in three: the mean is 100, the standard deviation 8.2
    assert (np.abs(masks.sum(0) - 100) < 5 * 8.2).all() and (masks.sum(1) == 1).all()
    over_steps = [METHOD.active({name: None}, keys[0], step)[name] for step in range(24)]
    assert np.sum(over_steps, 0).min() > 0


def test_a_choice_that_would_leave_nothing_out_or_never_change_is_refused():
    data = DataConfig((JsonlConfig("none", "none"),), sequence_length=16, batch_size=8)

    def program(method):
        return make_program(
            Experiment(steps=20, model=tiny.CONFIG, tokenizer="none", data=data, method=method),
            None,
        )

    with pytest.raises(ValueError, match=r"active_layers 3 is not less than the model's 3 layers"):
        program(LISA(active_layers=3, every=5))
    with pytest.raises(ValueError, match=r"every 20 is not less than the run's 20 steps"):
        program(LISA())
    assert program(LISA(every=19)).step_config.method == LISA(every=19)


@pytest.mark.heavy
def test_a_run_that_stopped_between_two_choices_goes_on_to_the_same_bits(tmp_path_factory):
    world = tiny_run.world(tmp_path_factory.getbasetemp())
    folders = [tmp_path_factory.mktemp("lisa") for _ in range(2)]
    train(world.experiment(3, method=METHOD), folders[0])
    train(world.experiment(6, method=METHOD), folders[0])
    train(world.experiment(6, method=METHOD), folders[1])
    assert tiny_run.content(folders[0]) == tiny_run.content(folders[1])
