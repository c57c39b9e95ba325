"""Trials of one mapped program are the single runs.

By `map` on one device they are to the bit, with the compiler as runs use it; by `vmap`, and shared
by several devices, to rounding. The tests' own compiler does not optimize, and fuses otherwise
inside a map than outside: with it `map` too is to rounding, and one test starts the other.
"""

import contextlib
import dataclasses
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from research import sharding
from research.checkpoints import runs
from research.methods import Full, LoRA, Prompt
from research.optim.adamw import AdamW
from research.optim.schedules import ScheduleConfig
from research.training import choice
from research.training.group import Member, train_together
from research.training.loop import train
from research.training.metrics import METRICS, read_metrics
from research.training.session import Session
from research.training.summary import Summary
from research.training.together import map_program
from tests.helpers import rounding, tiny_run

# of runs: what tests/conftest.py sets to compile sooner is not in it
COMPILER = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=3 "
    "--xla_cpu_use_fusion_emitters=true"
)
EXACT = os.environ.get("XLA_FLAGS", "").strip() == COMPILER
EPSILON = 1e-2  # large: without it Adam turns rounding of tiny gradients into whole steps
RATE = 1e-2
STEPS = 3


def trial(world, number, **changes):
    """Trials that differ in every number that may differ."""
    settings = {
        "data": dataclasses.replace(world.questions(), seed=number),
        "schedule": ScheduleConfig(RATE / (number + 1), "cosine", warmup=number % 2),
        "optimizer": AdamW(epsilon=EPSILON),
        "seed": number,
        "weight_decay": number / 100,
        "dropout": 0.1 + number / 100,
        "evaluate_split": "heldout",
        "evaluation": {"tasks": {}},
    }
    return world.tuning(STEPS, **settings | changes)


class Size:
    """An evaluator."""

    metrics = ("weights/size",)
    keys = {"weights": "all"}  # noqa: RUF012

    def describe(self):
        return "weights"

    def __call__(self, model):
        return {"weights/size": float(sum(abs(leaf).sum() for leaf in jax.tree.leaves(model)))}


class OneDevice(Session):
    """Runs work on the first device, as each trial of a group does; each is asked how large its
    weights are."""

    def __init__(self):
        super().__init__(lambda *_: Size())

    def make_program(self, experiment, base, devices=None):
        return super().make_program(experiment, base, jax.devices()[:1])


def losses_and_weights(world, experiments, kind=None, devices=None):
    """Losses [steps,T] and each trial's own arrays, alone (kind None) or mapped."""
    session = OneDevice()
    base, tokenizer = runs.open_base_and_tokenizer(experiments[0])
    programs = [session.make_program(experiment, base) for experiment in experiments]
    data = [session.open_data(program, tokenizer)[0] for program in programs]
    losses = []
    with sharding.mesh_context(programs[0].mesh, experiments[0].sharding_rules):
        halves = [session.make_state(program, None) for program in programs]
        owns, base_arrays = [own for own, _ in halves], halves[0][1]
        hypers = [program.place_hyper() for program in programs]
        single = session.compile(programs[0], data[0].batch(0))
    if kind is None:
        for step in range(STEPS):
            losses.append([])
            for number, program in enumerate(programs):
                rows = program.place(data[number].batch(step))
                owns[number], metrics = single(owns[number], base_arrays, rows, hypers[number])
                losses[-1].append(float(metrics["loss"]))
        return np.asarray(losses), owns
    mapped = map_program(programs[0], len(programs), kind, devices)
    train_step = session.compile_mapped(mapped, data[0].batch(0))
    own, hyper = mapped.stack(owns), mapped.stack(hypers)
    base_arrays = mapped.place_base(base_arrays)
    for step in range(STEPS):
        rows = mapped.place([one.batch(step) for one in data])
        own, metrics = train_step(own, base_arrays, rows, hyper)
        losses.append(np.asarray(metrics["loss"]))
    return np.asarray(losses), [mapped.take(own, number) for number in range(len(programs))]


def assert_equal(actual, expected):
    if not EXACT:
        assert_close(actual, expected)
        return
    np.testing.assert_array_equal(actual[0], expected[0])
    for mine, theirs in zip(actual[1], expected[1], strict=True):
        assert all(np.array_equal(mine[name], theirs[name]) for name in theirs)


def assert_close(actual, expected):
    rounding.assert_close(actual[0], expected[0], roundings=tiny_run.ROUNDINGS)
    count = rounding.gradient_roundings(tiny_run.MODEL, length=32)
    scale = rounding.moved(STEPS, RATE, EPSILON)
    for mine, theirs in zip(actual[1], expected[1], strict=True):
        for name in theirs:
            if name.startswith("model/"):
                rounding.assert_close(mine[name], theirs[name], roundings=count, scale=scale)


@pytest.mark.heavy
def test_mapped_is_single_on_one_device_and_on_several(world):
    changes = {"method": LoRA(rank=2), "accumulation_steps": 2}
    experiments = [trial(world, number, **changes) for number in range(4)]
    single = losses_and_weights(world, experiments)
    assert_equal(losses_and_weights(world, experiments, "map"), single)
    # two trials on each of two devices
    assert_close(losses_and_weights(world, experiments, "map", jax.devices()[:2]), single)
    assert_close(losses_and_weights(world, experiments, "vmap"), single)


@pytest.mark.heavy
@pytest.mark.skipif(EXACT, reason="this is it")
def test_with_the_compiler_of_runs_map_is_single_to_the_bit():
    names = "single_on_one or own_end or killed"
    command = [sys.executable, "-m", "pytest", "-q", __file__, "-k", names]
    environment = os.environ | {"XLA_FLAGS": COMPILER}
    process = subprocess.run(
        command, env=environment, capture_output=True, text=True, cwd=tiny_run.ROOT, timeout=1200
    )
    assert process.returncode == 0, process.stdout[-3000:]


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("method", "accumulation_steps"),
    [(Full(), 1), (LoRA(rank=2), 2), (Prompt(length=4), 1)],
    ids=["full", "lora", "prompt"],
)
def test_every_kind_of_method_mapped_is_single(world, method, accumulation_steps):
    changes = {"method": method, "accumulation_steps": accumulation_steps}
    experiments = [trial(world, number, **changes) for number in range(8)]
    single = losses_and_weights(world, experiments)
    assert_equal(losses_and_weights(world, experiments, "map"), single)
    assert_close(losses_and_weights(world, experiments, "vmap"), single)
    for kind in ("map", "vmap"):  # one on each of eight devices
        assert_close(losses_and_weights(world, experiments, kind, jax.devices()), single)


def members_of(experiments, folder, on_step=None):
    return [
        Member(experiment, folder / str(number), contextlib.nullcontext, on_step)
        for number, experiment in enumerate(experiments)
    ]


def assert_same_run(mine, theirs):
    """Equal arrays and metrics, or metrics of the same steps to rounding."""
    if EXACT:
        assert tiny_run.content(mine) == tiny_run.content(theirs)
        assert tiny_run.lines(mine) == tiny_run.lines(theirs)
    lines, expected = (read_metrics(folder / METRICS) for folder in (mine, theirs))
    assert [line.keys() for line in lines] == [line.keys() for line in expected]
    for line, other in zip(lines, expected, strict=True):
        assert line["step"] == other["step"] and line.get("skipped") == other.get("skipped")
        name = "heldout_loss" if "heldout_loss" in line else "loss"
        rounding.assert_close(line[name], other[name], roundings=tiny_run.ROUNDINGS)
        if "heldout_loss" in line:  # a sum over ten thousand weights
            size, others = line["weights/size"], other["weights/size"]
            rounding.assert_close(size, others, roundings=tiny_run.ROUNDINGS)


def map_on_one(session, opened_runs):
    return choice.Choice("map", tuple(jax.devices()[:1]))


@pytest.mark.heavy
def test_each_of_a_group_is_a_run_of_its_own_with_its_own_end(world, tmp_path):
    experiments = [trial(world, number, method=LoRA(rank=2)) for number in range(3)]
    diverging = ScheduleConfig(1e38, "cosine")
    experiments.append(trial(world, 3, method=LoRA(rank=2), schedule=diverging, max_skipped=1))
    (tmp_path / "2").mkdir()
    (tmp_path / "2" / "model").write_text("no folder")
    members = members_of(experiments, tmp_path)
    assert train_together(members, OneDevice(), map_on_one).kind == "map"
    summaries = [member.outcome for member in members]
    assert "is a file" in str(summaries[2]) and isinstance(summaries[2], ValueError)
    assert isinstance(summaries[3], FloatingPointError)
    for number in range(2):
        alone = train(experiments[number], tmp_path / "alone" / str(number), session=OneDevice())
        assert isinstance(summaries[number], Summary) and summaries[number].finished
        assert summaries[number].metrics.keys() == alone.metrics.keys()
        mine, theirs = (tmp_path / place / str(number) for place in (".", "alone"))
        assert_same_run(mine, theirs)
        names = runs.open_run(mine).checksums().keys()
        assert names == runs.open_run(theirs).checksums().keys()


@pytest.mark.heavy
def test_a_group_that_is_killed_goes_on_from_its_last_checkpoints(world, tmp_path):
    settings = {"method": LoRA(rank=2), "checkpoint": {"every": 1}}
    settings["checkpoint"] = dataclasses.replace(trial(world, 0).checkpoint, every=1)
    experiments = [trial(world, number, **settings) for number in range(2)]

    class KillError(BaseException):
        pass

    def kill(step, steps, rate):
        if step == 2:
            raise KillError

    with pytest.raises(KillError):
        train_together(members_of(experiments, tmp_path, kill), OneDevice(), map_on_one)
    members = members_of(experiments, tmp_path)
    session = OneDevice()
    train_together(members, session, map_on_one)
    for number, experiment in enumerate(experiments):
        alone = tmp_path / "alone" / str(number)
        train(experiment, alone, session=session)
        assert_same_run(tmp_path / str(number), alone)


def test_the_quicker_way_is_tried_once_for_groups_of_one_program(world, tmp_path, monkeypatch):
    seconds = {"alone": 1.0, "map": 0.9, "vmap": 1.5}
    names = []

    def seconds_of(name):
        names.append(name)
        if name == "vmap":
            raise ValueError("the step needs 99 GiB")
        return seconds[name]

    monkeypatch.setattr(choice, "_time_alone", lambda session, run: seconds_of("alone"))
    monkeypatch.setattr(choice, "_time_mapped", lambda session, runs, kind, _: 2 * seconds_of(kind))
    session = OneDevice()
    for place in ("a", "b"):
        experiments = [trial(world, n, method=LoRA(rank=2)) for n in range(2)]
        members = members_of(experiments, tmp_path / place)
        seconds["map"] = 1.5
        way = train_together(members, session, choice.probe)
        assert way.kind is None and all(member.outcome is None for member in members)
    assert names == ["alone", "map", "vmap"]
    assert way.describe() == (
        "one after the other (alone 1, map 0.667 steps/s of all trials); "
        "vmap: the step needs 99 GiB"
    )
