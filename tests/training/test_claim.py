"""A run's folder while it trains: its own, or the run ends; what is not its own is named."""

import json
import shutil
import time

import pytest

from research.checkpoints.checkpointer import open_checkpoint
from research.runtime import locks
from research.runtime.files import LinkError
from research.training.loop import train
from tests.helpers import tiny_run


def replace_lock(folder):
    (folder / ".lock").unlink()
    with locks.lock_file(folder / ".lock", "busy"):  # nothing keeps another run out
        pass


def content(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def record(folder):
    """Without the curves, which a thread writes."""
    files = content(folder).items()
    return {path: bytes for path, bytes in files if "tensorboard" not in path.parts}


LOSSES = {
    "removed": (lambda folder: (folder / ".lock").unlink(), r"\.lock was removed while this run"),
    "replaced": (replace_lock, r"\.lock was replaced by another file \(process \d+ on"),
    "moved": (lambda folder: folder.rename(folder.with_name("moved")), "was moved or removed"),
    "gone": (shutil.rmtree, "was moved or removed while this run trains in"),
}


@pytest.mark.parametrize("how", LOSSES)
def test_a_run_whose_folder_is_no_longer_its_own_ends_and_writes_nothing_more(run, how):
    folder, experiment = run
    lose, message = LOSSES[how]
    before = {}

    def watch(step, *_):
        if step == 5:
            lose(folder)
            before.update(record(folder.parent))

    with pytest.raises(locks.LockLostError, match=message):
        train(experiment(40), folder, on_step=watch)
    assert record(folder.parent) == before
    assert folder.exists() == (how in ("removed", "replaced"))


def test_a_run_whose_clock_is_set_back_and_forth_by_400_days_ends_as_ever(run, monkeypatch):
    folder, experiment = run
    clock, days = time.time, [0]
    monkeypatch.setattr(time, "time", lambda: clock() + 86400 * days[0])

    def watch(step, *_):
        days[0] = 400 if step % 2 else -400

    summary = train(experiment(8), folder, on_step=watch)
    assert summary.finished and 0 < summary.seconds < 3600 and len(tiny_run.lines(folder)) == 8


def test_small_files_that_a_live_run_loses_are_written_again_and_said(run, tmp_path, caplog):
    folder, experiment = run
    outside = tmp_path / "outside"
    outside.write_text("another's")

    def watch(step, *_):
        if step == 5:
            (folder / "config.json").unlink()
            (folder / "tokenizer.json").unlink()
            (folder / "tokenizer.json").symlink_to(outside)

    train(experiment(6), folder, on_step=watch)
    assert "config.json was removed while the run trains: it is written again" in caplog.text
    assert "tokenizer.json was replaced by a link while the run trains" in caplog.text
    assert json.loads((folder / "config.json").read_text())["steps"] == 6
    assert not (folder / "tokenizer.json").is_symlink() and outside.read_text() == "another's"


@pytest.mark.heavy
def test_a_second_run_beside_one_whose_lock_was_removed_is_the_only_one(run, tmp_path):
    folder, experiment = run
    first = tiny_run.start(experiment(4000), tmp_path, folder)
    tiny_run.wait_for(first, lambda: len(tiny_run.lines(folder)) > 8)
    (folder / ".lock").unlink()
    output = first.communicate(timeout=120)[0]
    assert first.returncode == 1 and ".lock was removed while this run trains" in output, output
    assert "Traceback" not in output
    count = len(tiny_run.lines(folder))
    assert 8 < count < 4000
    train(experiment(count + 2), folder)
    steps = [json.loads(line)["step"] for line in tiny_run.lines(folder)]
    assert steps == list(range(1, count + 3))


@pytest.fixture(scope="module")
def stranger(world, tmp_path_factory):
    """A checkpoint of another run, of the same shapes."""
    folder = tmp_path_factory.mktemp("stranger")
    train(world.experiment(2, seed=1), folder)
    return folder / "checkpoints" / "2"


@pytest.mark.parametrize("name", ["checkpoints/4", "checkpoints/6", "model/4", "model/6"])
def test_a_step_that_is_a_link_or_another_runs_is_refused_before_training(
    run, stranger, tmp_path, name, monkeypatch
):
    folder, experiment = run
    monkeypatch.setattr("research.training.program.Program.compile", None)
    place = folder / name
    shutil.copytree(folder / "checkpoints" / "4", tmp_path / "other")
    shutil.rmtree(place, ignore_errors=True)
    place.parent.mkdir(exist_ok=True)
    place.symlink_to(tmp_path / "other")
    with pytest.raises(LinkError, match=rf"{name} is a symbolic link to .*other"):
        train(experiment(6), folder)
    place.unlink()
    shutil.copytree(stranger, place)
    with pytest.raises(ValueError, match=r"holds a run of another experiment \(seed differ"):
        train(experiment(6), folder)
    shutil.rmtree(place)
    place.mkdir()
    (place / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=rf"{name} is no checkpoint \(it has notes.txt\)"):
        train(experiment(6), folder)
    assert (place / "notes.txt").exists()


def test_a_model_of_the_same_run_with_other_numbers_is_written_anew(run, caplog):
    folder, experiment = run
    train(experiment(6), folder)
    own = open_checkpoint(folder / "model", 6).checksums()
    (folder / "summary.json").unlink()
    shutil.rmtree(folder / "model" / "6")
    shutil.copytree(folder / "checkpoints" / "4", folder / "model" / "6")  # of step 4
    train(experiment(6), folder)
    assert open_checkpoint(folder / "model", 6).checksums() == own
    assert "model/6 held other arrays than those of this run" in caplog.text
