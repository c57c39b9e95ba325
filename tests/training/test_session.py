"""Runs of one process that share what does not differ between them are the runs alone."""

import dataclasses

import jax
import pytest

from research.data.examples import ExampleReader
from research.methods import Full, LoRA
from research.optim.schedules import ScheduleConfig
from research.training.loop import train
from research.training.program import Program
from research.training.session import Session
from tests.helpers import tiny_run

# numbers that a sweep moves, and the order of the data
NUMBERS = (
    {"seed": 0, "weight_decay": 0.0},
    {"seed": 1, "weight_decay": 0.1, "max_grad_norm": 0.5},
    {"seed": 2, "weight_decay": 0.2, "learning_rate_rules": ((".*", 0.5),)},
)


def trial(world, number, **changes):
    settings = {
        "data": dataclasses.replace(world.questions(), seed=number),
        "schedule": ScheduleConfig(1e-3 * (number + 1), "cosine", warmup=number),
        "evaluate_split": "heldout",
        "dropout": 0.1 + number / 100,
    }
    return world.tuning(3, **settings | NUMBERS[number] | changes)


@pytest.fixture
def counted(world, monkeypatch):
    """How often the expensive parts of a run were done."""
    assert world.base.is_dir()  # trained before it counts
    counts = dict.fromkeys(("compile", "read"), 0)

    def count(what, owner, name):
        original = getattr(owner, name)

        def counting(*arguments):
            counts[what] += 1
            return original(*arguments)

        monkeypatch.setattr(owner, name, counting)

    count("compile", Program, "compile")
    count("read", ExampleReader, "_read_now")
    return counts


@pytest.fixture
def compilations():
    """A line for each program that JAX compiles, or reads from its cache on disk."""
    events = []

    def listen(event, *_, **__):
        if "backend_compile" in event:
            events.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield events
    jax.monitoring.unregister_event_duration_listener(listen)


def content(folder):
    return tiny_run.lines(folder), tiny_run.content(folder)


@pytest.mark.heavy
def test_trials_that_differ_in_numbers_share_program_data_and_base(
    world, counted, compilations, tmp_path
):
    session = Session()
    methods = [LoRA(rank=2, alpha=4.0 + number) for number in range(3)]
    for number, method in enumerate(methods):
        compilations.clear()
        train(trial(world, number, method=method), tmp_path / f"{number}", session=session)
    assert not compilations  # of anything: seeds, rates, decay, dropout and alpha are arrays
    # the training split and the held-out one, once
    assert counted == {"compile": 1, "read": 2}
    # a full tune changes every parameter of the base that the others share
    train(trial(world, 1, method=Full()), tmp_path / "full", session=session)
    train(trial(world, 0, method=methods[0]), tmp_path / "again", session=session)
    assert content(tmp_path / "again") == content(tmp_path / "0")
    assert counted == {"compile": 2, "read": 2}
    for name, number, method in (("2", 2, methods[2]), ("full", 1, Full())):
        train(trial(world, number, method=method), tmp_path / f"{name} alone")
        assert content(tmp_path / f"{name} alone") == content(tmp_path / name)
