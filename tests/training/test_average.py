"""A moving average of the weights: what it is, and that it is what is measured and exported."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from research import methods, sharding, tree
from research import step as stepping
from research.checkpoints import runs
from research.checkpoints.checkpointer import open_checkpoint
from research.experiment import CheckpointConfig
from research.methods import LoRA
from research.optim.adamw import AdamW
from research.training.heldout_loss import evaluate_heldout
from research.training.loop import train
from research.training.program import make_program
from research.training.session import Session
from tests.helpers import rounding, tiny, tiny_run

DECAY = 0.3


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return tiny_run.world(tmp_path_factory.getbasetemp())


def test_the_average_follows_the_weights_and_starts_with_them():
    method = LoRA(rank=2)
    model = tiny.attached(method)
    names = methods.trainable(model, method)
    plan = stepping.StepConfig(names, averages=True)
    hyper = dataclasses.replace(tiny.hyper(names), average_decay=np.float32(DECAY))
    state = stepping.init_state(model, plan)
    expected = {name: np.asarray(leaf, np.float64) for name, leaf in state.average.items()}
    assert set(expected) == set(names)
    step = jax.jit(stepping.train_step, static_argnames="step_config")
    for number in range(4):
        state, _ = step(state, tiny.batch(), hyper, plan)
        decay, weights = min(DECAY, (1 + number) / (10 + number)), tree.flatten(state.model)
        for name in names:
            expected[name] = decay * expected[name] + (1 - decay) * np.asarray(weights[name])
            scale = np.abs(weights[name]).max()
            rounding.assert_close(state.average[name], expected[name], roundings=12, scale=scale)
    # four steps of up to 1e-2 each lie behind the weights, and a share of them behind the average
    assert max(np.abs(expected[n] - weights[n]).max() for n in names) > 1e-4
    skipped = dataclasses.replace(tiny.batch(), weights=np.zeros((8, 16), np.float32))
    after, _ = step(state, skipped, hyper, plan)
    assert all(np.array_equal(after.average[n], state.average[n]) for n in names)


def test_runs_that_differ_in_the_decay_share_a_program_and_one_without_has_no_average(world):
    programs = [
        make_program(world.experiment(3, average_decay=decay), None) for decay in (0.5, 0.9, None)
    ]
    assert programs[0].signature == programs[1].signature != programs[2].signature
    assert programs[2].state_shapes.average == {}


@pytest.mark.heavy
def test_a_stopped_run_goes_on_with_its_weights_and_its_average_to_the_same_bits(world, tmp_path):
    # a large epsilon: without it Adam turns rounding of tiny gradients into whole steps
    plain_changes = dict(evaluate_split="heldout", optimizer=AdamW(epsilon=1e-2))
    plain = train(world.experiment(6, **plain_changes), tmp_path / "plain")
    changes = plain_changes | dict(average_decay=DECAY)
    train(world.experiment(3, **changes), tmp_path / "run")
    train(world.experiment(6, **changes), tmp_path / "run")
    whole = train(world.experiment(6, **changes), tmp_path / "whole")
    assert tiny_run.content(tmp_path / "run") == tiny_run.content(tmp_path / "whole")
    # what goes on training is what a run without an average trains; the model is another one
    ours, theirs = (open_checkpoint(tmp_path / name) for name in ("whole", "plain"))
    weights = [name for name in theirs.checksums() if name.startswith("model/")]
    raw = ours.read(*(name.replace("model/", "average/") for name in weights))
    count = rounding.gradient_roundings(tiny_run.MODEL, rows=8, length=32)
    scale = rounding.moved(6, learning_rate=1e-2, epsilon=1e-2)
    for name, leaf in theirs.read(*weights).items():
        actual = raw[name.replace("model/", "average/")]
        rounding.assert_close(actual, leaf, roundings=count, scale=scale, err_msg=name)
    means, last = ours.read(*weights), theirs.read(*weights)
    # a share of the last steps of up to 1e-2 each; rounding is a thousandth of it
    assert all(np.abs(means[name] - last[name]).max() > 1e-4 for name in weights)
    assert whole.metrics["heldout_loss"] != plain.metrics["heldout_loss"]


def test_what_is_measured_saved_as_the_model_and_exported_is_the_average(world, tmp_path):
    experiment = world.experiment(
        4,
        average_decay=DECAY,
        evaluate_split="heldout",
        checkpoint=CheckpointConfig(keep_best=True),
    )
    summary = train(experiment, tmp_path)
    exported, checkpoint = (runs.open_run(tmp_path / name) for name in ("", "checkpoints/4"))
    assert exported.fingerprint == checkpoint.fingerprint
    session = Session()
    again = dataclasses.replace(experiment, init_from=str(tmp_path), model=None, tokenizer=None)
    base, tokenizer = session.open_base_and_tokenizer(again)
    program = session.make_program(again, base)
    _, heldout = session.open_data(program, tokenizer)
    model = program.model(*session.fresh_state(program))
    measured = evaluate_heldout(model, program.batch_sharding, heldout)
    rounding.assert_close(
        measured["heldout_loss"], summary.metrics["heldout_loss"], roundings=tiny_run.ROUNDINGS
    )
    lines = [json.loads(line) for line in tiny_run.lines(tmp_path)]
    assert any("heldout_loss" in line for line in lines)


@pytest.mark.heavy
def test_the_average_of_an_adapter_that_goes_on_starts_where_it_was(world, tmp_path):
    lora = dict(method=LoRA(rank=2))
    train(world.tuning(3, **lora), tmp_path / "first")
    start = dict(init_from=str(tmp_path / "first"), average_decay=DECAY, **lora)
    second = world.tuning(2, **start)
    session = Session()
    initial, _ = session.open_base_and_tokenizer(second)
    program = session.make_program(second, initial)
    with sharding.mesh_context(program.mesh, second.sharding_rules):
        own, _ = session.fresh_state(program)
    averages = {n.removeprefix("average/"): x for n, x in own.items() if n.startswith("average/")}
    assert averages and all(np.array_equal(x, own[f"model/{n}"]) for n, x in averages.items())
    assert any(np.abs(x).max() > 0 for n, x in averages.items() if n.endswith("/b"))
    assert train(second, tmp_path / "second").finished
