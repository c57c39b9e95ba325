"""A run's folder while it trains: its own, or the run ends; what is not its own is named."""

import json
import shutil
import sys
import time

import pytest

from research.checkpoints import runs
from research.checkpoints.checkpoint import Checkpoint, CheckpointError
from research.checkpoints.checkpointer import open_checkpoint
from research.checkpoints.step_folders import MARKERS
from research.runtime import locks, storage
from research.runtime.files import LinkError
from research.training.loop import train
from research.training.session import Session
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
    """Orbax's own limits on a save go by this clock too: one that jumps ahead in it is an error."""
    folder, experiment = run
    clock, days = time.time, [0]

    def moved():
        is_ours = sys._getframe(1).f_globals["__name__"].startswith("research.")
        return clock() + 86400 * days[0] * is_ours

    monkeypatch.setattr(time, "time", moved)

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


@pytest.mark.heavy
def test_a_model_of_the_same_run_with_other_numbers_is_written_anew(run, caplog):
    folder, experiment = run
    train(experiment(6), folder)
    own = open_checkpoint(folder / "model", 6).checksums()
    (folder / "summary.json").unlink()
    shutil.rmtree(folder / "model" / "6")
    shutil.copytree(folder / "checkpoints" / "4", folder / "model" / "6")
    metadata = folder / "model" / "6" / "files" / "metadata.json"
    metadata.write_text(json.dumps(json.loads(metadata.read_text()) | {"step": 6}))
    (metadata.parent / "digests.json").unlink()
    train(experiment(6), folder)
    assert open_checkpoint(folder / "model", 6).checksums() == own
    assert "model/6 held other arrays than those of this run" in caplog.text


@pytest.mark.parametrize("marker", MARKERS)
def test_a_step_without_its_marker_is_saved_again_from_the_step_before(run, caplog, marker):
    folder, experiment = run
    (folder / "checkpoints" / "4" / marker).unlink()
    train(experiment(4), folder)
    message = "checkpoints/4: no commit marker, its save was cut short; the newest complete step is"
    assert f"{message} 2" in caplog.text
    assert open_checkpoint(folder / "checkpoints").step == 4 and len(tiny_run.lines(folder)) == 4
    (folder / "model" / "4" / marker).unlink()
    assert train(experiment(4), folder).finished
    assert open_checkpoint(folder / "model").step == 4


@pytest.mark.parametrize("name", ["checkpoints/6", "model/6"])
def test_a_folder_put_in_the_place_of_a_step_under_a_live_run_ends_it_and_stays(run, name):
    folder, experiment = run

    def watch(step, *_):
        if step == 5:
            (folder / name).mkdir(parents=True)
            (folder / name / "precious.txt").write_text("mine")

    with pytest.raises(CheckpointError, match=rf"{name} is in the place of .*precious.txt"):
        train(experiment(6), folder, on_step=watch)
    assert (folder / name / "precious.txt").read_text() == "mine"
    assert open_checkpoint(folder / "checkpoints", 4)


def test_what_no_save_wrote_in_an_old_step_stays(run, caplog):
    folder, experiment = run
    begun = folder / "checkpoints" / "1"
    (begun / "state").mkdir(parents=True)
    for path in (begun, folder / "checkpoints" / "2"):
        (path / "mine.txt").write_text("mine")
    train(experiment(6), folder)
    assert [path.name for path in (folder / "checkpoints" / "2").iterdir()] == ["mine.txt"]
    assert (begun / "state").exists() and (begun / "mine.txt").exists()
    assert f"{begun} has no commit marker and is not removed: no save wrote mine.txt" in caplog.text


def test_a_step_that_was_renamed_is_refused(run):
    folder, experiment = run
    (folder / "checkpoints" / "4").rename(folder / "checkpoints" / "5")
    message = "checkpoints/5 holds step 4, not 5: it was renamed"
    with pytest.raises(ValueError, match=message):
        train(experiment(6), folder)
    with pytest.raises(ValueError, match=message):
        runs.open_run(folder)
    step = Checkpoint(storage.absolute(folder / "checkpoints" / "5"))
    metadata = json.loads((step.path / "files" / "metadata.json").read_text())
    assert metadata.pop("step") == 4
    (step.path / "files" / "metadata.json").write_text(json.dumps(metadata))
    (step.path / "files" / "digests.json").unlink()
    with pytest.raises(ValueError, match=message):  # one of old: its state tells
        step.check_step()


def test_another_runs_newest_step_is_named(run, stranger, tmp_path):
    folder, experiment = run
    shutil.copytree(stranger.parent, tmp_path / "strange")
    shutil.copytree(folder / "checkpoints" / "4", tmp_path / "4")
    shutil.rmtree(folder / "checkpoints")
    (folder / "checkpoints").symlink_to(tmp_path / "strange")
    with pytest.raises(LinkError, match="run/checkpoints is a symbolic link to .*strange"):
        train(experiment(6), folder)
    (folder / "checkpoints").unlink()
    shutil.move(tmp_path / "strange", folder / "checkpoints")
    with pytest.raises(ValueError, match="checkpoints/2 holds a run of another experiment"):
        train(experiment(6), folder)


def test_the_end_of_a_run_is_made_once_more_where_its_model_or_summary_is_gone(run, caplog):
    folder, experiment = run
    session = Session()  # compiles once
    summary = train(experiment(6), folder, session=session)
    shutil.rmtree(folder / "model")
    again = train(experiment(6), folder, session=session)
    assert f"{folder}/model/6 is not there: it is made from the checkpoint of step 6" in caplog.text
    assert open_checkpoint(folder / "model").step == 6 and again.metrics == summary.metrics
    path = folder / "summary.json"
    content = json.loads(path.read_text())
    for change, message in (
        ({"steps": 8}, "which has 6 steps behind it: it tells of 8 steps"),
        ({"loss": 99.0}, "its loss is not that of step 6"),
    ):
        path.write_text(json.dumps(content | change))
        train(experiment(6), folder, session=session)
        assert message in caplog.text
        assert json.loads(path.read_text())["loss"] == summary.metrics["loss"]
    for damaged in ("{}", "[]"):
        path.write_text(damaged)
        with pytest.raises(ValueError, match=r"summary.json is damaged .* delete it"):
            train(experiment(6), folder, session=session)
