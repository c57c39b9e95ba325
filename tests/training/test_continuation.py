"""A run that starts at a tuned run goes on with its adapters, on the same base."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from research.checkpoints import runs
from research.experiment import CheckpointConfig
from research.methods import EWC, IA3, Full, LoRA, Prompt, Several
from research.training.loop import train
from tests.helpers import tiny_run

TWO = LoRA(rank=2, alpha=4.0)


@pytest.fixture(scope="module")
def tuned(world, tmp_path_factory):
    """LoRA on questions for two steps, and for four, which is what goes on from it must equal."""
    folder = tmp_path_factory.mktemp("tuned")
    train(world.tuning(2, method=TWO), folder / "two")
    train(world.tuning(4, method=TWO), folder / "four")
    return folder


def going_on(world, start, **changes):
    experiment = world.tuning(2, **{"method": TWO} | changes)
    data = dataclasses.replace(experiment.data, first_batch=2)
    return dataclasses.replace(experiment, init_from=str(start), data=data)


def own_arrays(folder):
    run = runs.open_run(folder)
    return run.read(*run.checkpoint.checksums("model/")), run


def test_parts_of_a_run_give_the_bits_of_the_whole(world, tuned, tmp_path):
    start = tuned / "two" / "checkpoints" / "2"
    train(going_on(world, start, keep_optimizer=True), tmp_path / "run")
    arrays, run = own_arrays(tmp_path / "run")
    whole, _ = own_arrays(tuned / "four")
    assert run.base.path == runs.open_run(tuned / "two").base.path
    assert arrays.keys() == whole.keys()
    for name, array in whole.items():
        np.testing.assert_array_equal(arrays[name], array, name)


def test_without_its_optimizer_only_the_adapters_go_on(world, tuned, tmp_path):
    changes = {"schedule": tiny_run.ScheduleConfig(learning_rate=1e-30, kind="constant")}
    train(going_on(world, tuned / "two", **changes), tmp_path / "run")
    arrays, _ = own_arrays(tmp_path / "run")
    before, _ = own_arrays(tuned / "two")
    for name, array in before.items():
        np.testing.assert_array_equal(arrays[name], array, name)  # a rate too small for float32


@pytest.mark.heavy
def test_what_is_attached_beside_them_starts_afresh(world, tuned, tmp_path):
    both = Several(of=(TWO, IA3()))
    train(going_on(world, tuned / "two", method=both), tmp_path / "run")
    arrays, run = own_arrays(tmp_path / "run")
    before, _ = own_arrays(tuned / "two")
    assert set(before) < set(arrays)
    assert run.method.adapter_names == ("lora", "ia3")


@pytest.mark.parametrize(
    "method, message",
    [
        (LoRA(rank=2, alpha=8.0), r"attached with alpha 4\.0, not 8\.0"),
        (LoRA(rank=2, alpha=4.0, adapter="other"), r"has lora adapters \('lora'\)"),
        (Full(), "which the method full does not go on with"),
        (Prompt(length=2), "graft adapters merge"),
    ],
)
def test_adapters_that_do_not_go_on_as_they_were_are_refused(
    world, tuned, tmp_path, method, message
):
    with pytest.raises(ValueError, match=message):
        train(going_on(world, tuned / "two", method=method), tmp_path / "run", dry_run=True)


def test_what_starts_from_other_data_does_not_begin_beside_adapters_that_go_on(
    world, tuned, tmp_path
):
    """Its weights of what the model knows would be zero."""
    both = Several(of=(TWO, EWC((".*norm/scale",))))
    experiment = going_on(world, tuned / "two", method=both, start_data=world.data())
    with pytest.raises(ValueError, match="reads `start_data` for a start of its own"):
        train(experiment, tmp_path / "run", dry_run=True)


def test_an_optimizer_that_is_not_there_is_named(world, tuned, tmp_path):
    experiment = going_on(world, tuned / "two" / "model" / "2", keep_optimizer=True)
    with pytest.raises(ValueError, match="finished models have none"):
        train(experiment, tmp_path / "run")
    with pytest.raises(ValueError, match="keep_optimizer: there is no `init_from`"):
        world.experiment(2, keep_optimizer=True)


@pytest.mark.heavy
def test_a_run_that_goes_on_resumes_to_the_same_bits(world, tuned, tmp_path):
    every = CheckpointConfig(every=1)
    experiment = going_on(world, tuned / "two" / "checkpoints" / "2", checkpoint=every)
    train(experiment, tmp_path / "whole")
    train(dataclasses.replace(experiment, steps=1), tmp_path / "run")
    train(experiment, tmp_path / "run")
    arrays, _ = own_arrays(tmp_path / "run")
    whole, _ = own_arrays(tmp_path / "whole")
    for name, array in whole.items():
        np.testing.assert_array_equal(arrays[name], array, name)


@pytest.mark.heavy
def test_a_run_is_not_resumed_from_another_start(world, tuned, tmp_path):
    experiment = going_on(world, tuned / "two")
    train(dataclasses.replace(experiment, steps=1), tmp_path / "run")
    other = dataclasses.replace(experiment, init_from=str(tuned / "four"))
    with pytest.raises(ValueError, match="was started from other adapters"):
        train(other, tmp_path / "run")


def begin_elsewhere(step):
    """Lets a checkpoint say that its run began with another model."""
    metadata = step / "files" / "metadata.json"
    content = json.loads(metadata.read_text()) | {"initial": "0" * 64}
    metadata.write_text(json.dumps(content))
    (metadata.parent / "digests.json").unlink()


def test_a_run_of_all_weights_says_that_its_start_is_another_model_now(world, tmp_path, caplog):
    """It has its own weights, so that nothing of `init_from` is read again."""
    experiment = world.tuning(1, method=Full())
    train(experiment, tmp_path / "run")
    moved = tmp_path / "moved"
    shutil.copytree(world.base, moved)
    longer = dataclasses.replace(experiment, steps=2)
    train(dataclasses.replace(longer, init_from=str(moved)), tmp_path / "run")  # the same model
    assert "another model" not in caplog.text
    begin_elsewhere(tmp_path / "run" / "checkpoints" / "2")
    train(dataclasses.replace(longer, steps=3, init_from=str(moved)), tmp_path / "run")
    assert f"{moved} is another model now than when the run began" in caplog.text
    begin_elsewhere(tmp_path / "run" / "checkpoints" / "3")
    with pytest.raises(ValueError, match="began with another model .*moved.* names now .*base"):
        train(dataclasses.replace(longer, steps=4), tmp_path / "run")
