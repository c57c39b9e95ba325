"""Runs in phases: each goes on where the one before it ended, and they resume as one run."""

import json
import shutil

import numpy as np
import pytest

from research.checkpoints import runs
from research.commands import train as command
from research.config import cli, schema
from research.experiment import Experiment
from research.methods import LoRA
from research.phases.phased import Phase, PhasedExperiment
from research.phases.run import train_phases
from research.training.loop import train

LORA = LoRA(rank=2, alpha=4.0)


def phased(world, *phases, **changes):
    common = schema.to_dict(world.tuning(2, **{"method": LORA} | changes))
    phases = [schema.to_dict(phase) for phase in phases]
    return schema.build(PhasedExperiment, common | {"phases": phases})


def own_arrays(path):
    run = runs.open_run(path)
    return run.read(*run.checkpoint.checksums("model/"))


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, array in one.items():
        np.testing.assert_array_equal(array, other[name], name)


def test_phases_with_one_optimizer_give_the_bits_of_one_run(world, tmp_path):
    plan = phased(world, Phase("first"), Phase("second", {"keep_optimizer": True, "seed": 0}))
    summary = train_phases(plan, tmp_path / "run")
    train(world.tuning(4, method=LORA), tmp_path / "whole")
    assert_same(own_arrays(tmp_path / "run"), own_arrays(tmp_path / "whole"))
    content = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert content["steps"] == 4 and content["finished"]
    assert content["loss"] == summary.metrics["loss"] == content["phases"]["second"]["loss"]
    again = train_phases(plan, tmp_path / "run")  # all of it is finished
    assert again.metrics["loss"] == summary.metrics["loss"]
    with pytest.raises(ValueError, match="2_second is no phase of the config, which has 1_first:"):
        train_phases(phased(world, Phase("first")), tmp_path / "run")  # it would open as the second


def test_a_phase_that_merges_starts_from_the_adapters_in_its_base(world, tmp_path):
    plan = phased(world, Phase("first"), Phase("again", {"steps": 1}, merge=True))
    train_phases(plan, tmp_path / "run")
    run = runs.open_run(tmp_path / "run")
    merged = runs.open_run(tmp_path / "run" / "phases" / "1_first" / "merged")
    assert run.base.fingerprint == merged.fingerprint != runs.open_run(world.base).fingerprint
    first = own_arrays(tmp_path / "run" / "phases" / "1_first")
    name = next(name for name in first if name.endswith("lora/a"))
    assert not np.array_equal(own_arrays(tmp_path / "run")[name], first[name])  # of another seed


@pytest.mark.parametrize(
    "phases, message",
    [
        ([Phase("a"), Phase("a")], "phases: a is there twice"),
        ([Phase("a", merge=True)], r"phases\[0\].merge: no phase comes before a"),
        ([Phase("a"), Phase("b", {"stepz": 3})], r"stepz.*did you mean steps"),
        ([Phase("a"), Phase("b", {"steps": 0})], r"phases\[1\] \(b\): .*steps"),
        ([Phase("a"), Phase("b", {"method": {"kind": "ia3"}})], "phase 2 of 2, b: .*does not"),
        ([Phase("a"), Phase("b", {"init_from": "/none"})], "phase 2 of 2, b: no checkpoint in"),
        ([Phase("a" * 201)], "is longer than 200 bytes"),
        (
            [Phase("a", {"method": {"kind": "full"}}), Phase("b", merge=True)],
            r"phases\[1\].merge: a trains the whole model \(full\)",
        ),
        (
            [Phase("a", {"method": {"kind": "prompt"}}), Phase("b", merge=True)],
            r"phases\[1\].merge: .*cannot be merged",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_the_first_step(world, tmp_path, phases, message):
    with pytest.raises(ValueError, match=message):
        train_phases(phased(world, *phases), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_folder_holds_a_run_in_phases_or_one_of_one_experiment(world, tmp_path):
    (tmp_path / "run" / "phases").mkdir(parents=True)
    with pytest.raises(ValueError, match="holds a run in phases"):
        train_phases(phased(world), tmp_path / "run")
    with pytest.raises(ValueError, match="holds a run of one experiment"):
        train_phases(phased(world, Phase("a")), world.base)


def test_the_command_takes_phases_and_a_dry_run_checks_them_all(world, tmp_path, capsys):
    content = schema.to_dict(phased(world, Phase("a"), Phase("b", {"steps": 3})))
    config = tmp_path / "config.py"
    config.write_text(f"def get_config():\n    return {content!r}\n")
    command.main(["--config", str(config), "--workdir", str(tmp_path / "run"), "--dry-run"])
    printed = capsys.readouterr().out
    assert "phase 1 of 2, a" in printed
    assert "phase 2 of 2, b, checked as if it began where the first phase does" in printed
    assert not (tmp_path / "run").exists()


def test_a_phase_that_began_at_another_end_is_refused_and_what_is_merged_is_made_anew(
    world, tmp_path
):
    """A phase is taken on after the one behind it was trained."""
    end = Phase("again", {"steps": 1}, merge=True)
    train_phases(phased(world, Phase("first"), end), tmp_path / "run")
    merged = tmp_path / "run" / "phases" / "1_first" / "merged"
    before = runs.open_run(merged).fingerprint
    longer = phased(world, Phase("first", {"steps": 3}), end)
    with pytest.raises(ValueError, match="2_again began where the phase before it ended then"):
        train_phases(longer, tmp_path / "run")
    assert runs.open_run(merged).fingerprint != before
    shutil.rmtree(tmp_path / "run" / "phases" / "2_again")  # as it says
    train_phases(longer, tmp_path / "run")
    assert runs.open_run(tmp_path / "run").base.fingerprint == runs.open_run(merged).fingerprint


def test_a_command_that_plans_one_experiment_says_that_a_config_has_phases(world, tmp_path):
    config = tmp_path / "config.py"
    content = schema.to_dict(phased(world, Phase("a")))
    config.write_text(f"def get_config():\n    return {content!r}\n")
    with pytest.raises(ValueError, match="a run in phases, which this command does not read"):
        cli.load(Experiment, str(config))


def test_phases_are_planned_on_the_base_of_the_first_before_there_is_a_run(world):
    plan = phased(world, Phase("first"), Phase("second", {"steps": 5, "data.batch_size": 2}))
    first, second = plan.planned().values()
    assert first == plan.common and second.init_from == first.init_from == str(world.base)
    assert (second.steps, second.data.batch_size) == (5, 2)
    changed = cli.override(second, ["data.batch_size=6"])
    assert (changed.steps, changed.data.batch_size) == (5, 6)
