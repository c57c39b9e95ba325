"""Runs that end before their end: killed, stopped, out of disk, out of numbers. Nothing is lost."""

import dataclasses
import functools
import json
import random
import resource
import shutil
import signal

import jax
import numpy as np
import pytest

from research.checkpoints import runs
from research.checkpoints.checkpointer import Checkpointer, CheckpointError, open_checkpoint
from research.experiment import CheckpointConfig
from research.methods import IA3, Bank, DoRA, LoRA, Partial, Prefix, Prompt, Several, VeRA
from research.methods.l2_sp import L2SP
from research.optim.schedules import ScheduleConfig
from research.runtime import distributed
from research.sharding import MeshConfig
from research.training import follower
from research.training.loop import train
from tests.helpers import rounding, tiny_run

EVERY_SECOND = CheckpointConfig(every=2, keep_last=2)
NO_LIMIT = 1_000_000  # steps of a run that is not meant to reach its end
# TensorStore's late callbacks find Orbax's event loop closed, where no code can catch the error.
late_callbacks = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def full(world, steps):
    """Everything that a step can depend on: a mesh of three axes, dropout, two micro-batches."""
    return world.experiment(
        steps,
        mesh=MeshConfig(2, 2, 2),
        dropout=0.1,
        accumulation_steps=2,
        checkpoint=EVERY_SECOND,
        evaluate_split="heldout",
        evaluate_every=3,
    )


@pytest.fixture(scope="module")
def whole(world, tmp_path_factory):
    """A run that nobody stopped, of 8 steps, with steps 6 and 8 saved."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    train(full(world, 8), workdir)
    return workdir


def unfinished(whole, folder):
    """A copy of a run as it was when step 8 was saved and nothing after it was written."""
    workdir = folder / "run"
    shutil.copytree(whole, workdir)
    shutil.rmtree(workdir / "model")
    (workdir / "summary.json").unlink()
    return workdir


@pytest.mark.heavy
def test_a_run_killed_at_a_random_step_resumes_to_the_same_bits(world, tmp_path):
    workdir, kill_at = tmp_path / "run", random.SystemRandom().randint(2, 9)
    process = tiny_run.start(full(world, NO_LIMIT), tmp_path, workdir)
    tiny_run.wait_for(process, lambda: len(tiny_run.lines(workdir)) >= kill_at)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    with Checkpointer(workdir / "checkpoints") as checkpoints:
        saved_step = checkpoints.latest_step() or 0  # none, if the kill fell into the first save
    steps = max(saved_step, 1) + 3
    summary = train(full(world, steps), workdir)
    assert summary.finished and summary.steps == steps
    train(full(world, steps), tmp_path / "whole")
    assert tiny_run.content(workdir) == tiny_run.content(tmp_path / "whole"), (kill_at, saved_step)
    ours, theirs = tiny_run.lines(workdir), tiny_run.lines(tmp_path / "whole")
    assert ours == theirs, (kill_at, saved_step)
    steps_seen = [json.loads(line)["step"] for line in ours if "accuracy" in line]
    assert steps_seen == list(range(1, steps + 1))
    assert sum("heldout_loss" in line for line in ours) == len({*range(3, steps, 3), steps})
    optimizer = [name for name in tiny_run.content(workdir) if name.startswith("optimizer/")]
    assert any("mu" in name for name in optimizer) and any("nu" in name for name in optimizer)


@pytest.mark.heavy
def test_sigterm_saves_the_step_it_stops_at_and_an_adapter_resumes_to_the_same_bits(
    world, tmp_path
):
    def tuning(steps):
        return world.tuning(
            steps, method=LoRA(rank=2), adapter_dropout=0.1
        )  # saves at its end only

    workdir = tmp_path / "run"
    process = tiny_run.start(tuning(NO_LIMIT), tmp_path, workdir)
    tiny_run.wait_for(process, lambda: len(tiny_run.lines(workdir)) >= 3)
    process.terminate()
    output, _ = process.communicate(timeout=120)
    assert process.returncode == distributed.EXIT_RESTART, output
    at = open_checkpoint(workdir).step
    assert f"stopped by a signal at step {at}, saved; run the same command to go on" in output
    assert [json.loads(line)["step"] for line in tiny_run.lines(workdir)] == list(range(1, at + 1))
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary["steps"] == at and summary["finished"] is False
    assert not (workdir / "model").exists()
    train(tuning(at + 3), workdir)
    train(tuning(at + 3), tmp_path / "whole")
    assert tiny_run.content(workdir) == tiny_run.content(tmp_path / "whole"), at
    assert tiny_run.lines(workdir) == tiny_run.lines(tmp_path / "whole")


@pytest.mark.heavy
@pytest.mark.parametrize(
    "method",
    [
        Several(of=(LoRA(rank=2), Prompt(length=4, start="text", text="red roofs"))),
        VeRA(rank=4),
        Prefix(length=3, reparameterized=True, mlp_width=8),
        Partial((r"layers/1/.*",)),
        L2SP(strength=0.1),
        Several(of=(DoRA(rank=2), IA3())),
        Bank(of=LoRA(rank=2, start="pissa"), names=("a", "b")),
    ],
    ids=lambda method: method.kind,
)
def test_what_is_bound_shared_or_part_of_the_base_resumes_to_the_same_bits(world, tmp_path, method):
    dropout, data = 0.1 * method.drops, world.questions()
    if method.kind == "bank":
        both = [dataclasses.replace(data.sources[0], name=n, adapter=n) for n in method.names]
        data = dataclasses.replace(data, sources=tuple(both))
    tuning = functools.partial(world.tuning, method=method, adapter_dropout=dropout, data=data)
    train(tuning(3), tmp_path / "run")
    train(tuning(6), tmp_path / "run")
    train(tuning(6), tmp_path / "whole")
    assert tiny_run.content(tmp_path / "run") == tiny_run.content(tmp_path / "whole")


def test_a_signal_between_any_two_lines_of_the_loop_loses_no_step(world, tmp_path, monkeypatch):
    """Here: just after the loop saw no signal, while it asks whether a checkpoint is due."""
    is_due = follower.is_due

    def due(step, every, steps):
        if step == 3 and every == NO_LIMIT:
            signal.raise_signal(signal.SIGTERM)
        return is_due(step, every, steps)

    monkeypatch.setattr(follower, "is_due", due)
    summary = train(world.experiment(9, checkpoint=CheckpointConfig(NO_LIMIT)), tmp_path)
    assert summary.steps in (3, 4) and not summary.finished
    assert open_checkpoint(tmp_path).step == summary.steps
    whole = json.loads((world.base / "summary.json").read_text())  # of the same data
    for name in ("tokens", "examples", "flops"):  # what was done, not what was planned
        ours, expected = getattr(summary, name) / summary.steps, whole[name] / 30
        rounding.assert_close(ours, expected, roundings=1, unit=rounding.FLOAT64)


def test_a_finished_run_is_left_as_it_is(world, whole, capsys):
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    summary = train(full(world, 8), whole)
    assert summary.finished and summary.steps == 8
    assert f"{whole} is finished: 8 of 8 steps" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*")} == before


def test_a_run_killed_after_its_last_save_is_finished_with_all_its_numbers(world, whole, tmp_path):
    workdir = unfinished(whole, tmp_path)
    summary = train(full(world, 8), workdir).to_dict()
    expected = json.loads((whole / "summary.json").read_text())
    measured = {"seconds", "peak_memory_bytes", "timing", "step_seconds", "quickest_step_seconds"}
    assert summary.keys() == expected.keys()
    for name in expected.keys() - measured:
        assert summary[name] == expected[name], name
    assert tiny_run.content(workdir / "model") == tiny_run.content(whole / "model")
    assert tiny_run.lines(workdir) == tiny_run.lines(whole)


@late_callbacks
def test_a_torn_checkpoint_is_named_and_the_step_before_it_gives_the_same_bits(
    world, whole, tmp_path
):
    workdir = unfinished(whole, tmp_path)
    damaged = workdir / "checkpoints" / "8"
    data = max((damaged / "state" / "d").iterdir(), key=lambda path: path.stat().st_size)
    data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
    lines = tiny_run.lines(workdir)
    with pytest.raises(CheckpointError) as error:
        train(full(world, 8), workdir)
    assert f"checkpoint {damaged} cannot be read" in str(error.value)
    assert "move this folder away to fall back to step 6" in str(error.value)
    assert tiny_run.lines(workdir) == lines
    damaged.rename(tmp_path / "torn")
    train(full(world, 8), workdir)
    assert tiny_run.content(workdir) == tiny_run.content(whole)
    assert tiny_run.lines(workdir) == tiny_run.lines(whole)


@pytest.mark.heavy
@late_callbacks
def test_a_full_disk_ends_the_run_and_the_step_before_it_restores(world, whole, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(whole, workdir)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    least = jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1e9)  # not a torn entry there
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(CheckpointError) as error:
            train(full(world, 12), workdir)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", least)
    message = str(error.value)
    assert f"could not save step 10 in {workdir / 'checkpoints'}" in message
    assert "Step 8 there is still good" in message and "Free disk space" in message
    assert open_checkpoint(workdir).step == 8
    assert tiny_run.content(workdir) == tiny_run.content(whole)
    run = runs.open_run(workdir)
    run.checkpoint.restore(run.checkpoint.abstract())  # compares with the checksums
    train(full(world, 12), workdir)
    assert open_checkpoint(workdir).step == 12


def test_a_folder_of_another_experiment_is_refused(world, whole):
    before = tiny_run.content(whole), (whole / "config.json").read_bytes()
    other = dataclasses.replace(full(world, 9), dropout=0.2, seed=1)
    with pytest.raises(ValueError, match=r"whole.*another experiment \(dropout, seed differ\)"):
        train(other, whole)
    assert before == (tiny_run.content(whole), (whole / "config.json").read_bytes())


@pytest.mark.heavy
@pytest.mark.parametrize("on_resume", ["hold", "decay"])
def test_a_longer_run_says_how_its_rates_go_on_and_gives_the_bits_of_one_that_had_them(
    world, tmp_path, on_resume
):
    def experiment(run_steps, **schedule):
        rates = ScheduleConfig(learning_rate=1e-2, warmup=1, **schedule)
        rules = ((".*norm.*", 0.5), ("layers/1/.*", 0.25))
        return world.experiment(
            run_steps, schedule=rates, learning_rate_rules=rules, checkpoint=EVERY_SECOND
        )

    workdir = tmp_path / "run"
    train(experiment(4), workdir)
    before = tiny_run.content(workdir), tiny_run.lines(workdir)
    with pytest.raises(
        ValueError, match=r"run cannot go on at step 4: .* would bend: step 4 .*hold"
    ):
        train(experiment(7), workdir)
    assert before == (tiny_run.content(workdir), tiny_run.lines(workdir))
    train(experiment(7, on_resume=on_resume), workdir)
    shutil.rmtree(workdir / "checkpoints" / "7")  # as if it was killed, and is started again
    train(experiment(7, on_resume=on_resume), workdir)
    decays = ((4, 7),) * (on_resume == "decay")
    schedule = {"steps": 4, "decays": decays, "on_resume": on_resume}
    train(experiment(7, **schedule), tmp_path / "whole")
    assert tiny_run.content(workdir) == tiny_run.content(tmp_path / "whole")
    assert tiny_run.lines(workdir) == tiny_run.lines(tmp_path / "whole")
    recorded = json.loads((workdir / "config.json").read_text())["schedule"]
    assert recorded.items() >= {"steps": 4, "on_resume": on_resume}.items()


def test_a_run_without_finite_losses_stops_and_keeps_what_it_has(world, tmp_path):
    workdir = tmp_path / "run"
    experiment = world.experiment(
        20, schedule=ScheduleConfig(1e30, "constant"), max_grad_norm=None, max_skipped=3, seed=5
    )
    with pytest.raises(
        FloatingPointError, match=r"3 steps in a row up to step 4 .*schedule.learning_rate"
    ):
        train(experiment, workdir)
    lines = [json.loads(line) for line in tiny_run.lines(workdir)]
    assert [line["skipped"] for line in lines[:4]] == [0, 1, 1, 1]
    assert np.isfinite(lines[0]["loss"]) and lines[1]["gradient_norm"] is None
    assert not (workdir / "summary.json").exists()
