"""A run's folder: one writer, nothing beyond it touched, and what an interrupted run says of it."""

import os
import shutil
import subprocess
import sys

import pytest

from research.checkpoints import runs
from research.checkpoints.checkpointer import open_checkpoint
from research.commands import train as program
from research.runtime import locks
from research.runtime.files import LinkError
from research.training import loop, resume, workdir
from research.training.loop import train
from tests.helpers import tiny_run

HOLDER = """if True:
    import sys, time
    from pathlib import Path
    from research.runtime import locks
    locks.lock_until_exit(Path(sys.argv[1]), "busy")
    print("ready", flush=True)
    time.sleep(600)
"""


def content(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_second_start_touches_nothing_and_says_who_holds_the_folder(run):
    folder, experiment = run
    line = [sys.executable, "-c", HOLDER, str(folder / ".lock")]
    process = subprocess.Popen(line, cwd=tiny_run.ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    before = content(folder)
    with pytest.raises(ValueError, match=rf"is training in .*process {process.pid} on .* since 20"):
        train(experiment(6), folder)
    process.kill()
    process.wait()
    assert content(folder) == before


@pytest.mark.heavy
def test_a_run_that_ended_after_the_first_look_keeps_its_rows(run, tmp_path, monkeypatch):
    """Another process finishes the run between this one's look at the folder and its lock."""
    folder, experiment = run
    claim = workdir.claim_workdir

    def finish_elsewhere(place):
        process = tiny_run.start(experiment(9), tmp_path, folder)
        assert process.wait(timeout=120) == 0, process.communicate()[0]
        before.update(content(folder))
        claim(place)

    before = {}
    monkeypatch.setattr(resume, "claim_workdir", finish_elsewhere)
    summary = train(experiment(9), folder)
    assert summary.finished and summary.steps == 9
    lock = {folder / ".lock": (folder / ".lock").read_bytes()}  # names this process now
    assert content(folder) == before | lock and len(tiny_run.lines(folder)) == 9


@pytest.mark.heavy
def test_two_starts_at_once_are_one_run(run, tmp_path):
    folder, experiment = run
    file = tiny_run.config_file(tmp_path, experiment(40))
    line = tiny_run.command("train", "--config", file, "--workdir", folder)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    processes = [subprocess.Popen(line, cwd=tiny_run.ROOT, **pipes) for _ in range(2)]
    outputs = [process.communicate(timeout=240)[0] for process in processes]
    statuses = sorted(process.returncode for process in processes)
    # the later one may come when the first has finished
    refused, late = "another process is training in", "is finished: 40 of 40 steps"
    assert statuses == [0, 1] or any(late in output for output in outputs), outputs
    assert sum(refused in output or late in output for output in outputs) == 1, outputs
    steps = [json_line.split(",")[0] for json_line in tiny_run.lines(folder)]
    assert steps == [f'{{"step": {step}' for step in range(1, 41)]


@pytest.mark.parametrize("name", workdir.OWN_NAMES)
def test_what_links_out_of_the_folder_is_named_before_anything_is_written(run, tmp_path, name):
    folder, experiment = run
    outside = tmp_path / "outside"
    if (folder / name).exists():
        (folder / name).rename(outside)
    else:
        outside.mkdir()
    before = content(tmp_path)
    (folder / name).symlink_to(outside)
    with pytest.raises(LinkError, match=f"{name} is a symbolic link to .*outside.*remove the link"):
        train(experiment(6), folder)
    (folder / name).unlink()
    assert content(tmp_path) == before


def test_a_folder_that_is_a_link_itself_is_trained_in(run, tmp_path):
    folder, experiment = run
    (tmp_path / "link").symlink_to(folder)
    train(experiment(6), tmp_path / "link")
    assert open_checkpoint(folder).step == 6 and len(tiny_run.lines(folder)) == 6


def test_saving_removes_a_linked_step_alone_and_never_what_it_leads_to(run, tmp_path):
    folder, experiment = run
    other = tmp_path / "other"
    shutil.move(folder / "checkpoints" / "2", other)
    before = content(other)
    (folder / "checkpoints" / "2").symlink_to(other)
    leftover = folder / "checkpoints" / "9.orbax-checkpoint-tmp-1"
    leftover.symlink_to(other)
    train(experiment(6), folder)
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["4", "6"]
    assert content(other) == before


def test_what_a_kill_left_is_removed_at_the_start(run, caplog):
    folder, experiment = run
    half_removed = folder / "checkpoints" / "2"
    for marker in ("commit_success.txt", "_CHECKPOINT_METADATA"):
        (half_removed / marker).unlink()
    leftovers = [
        folder / "checkpoints" / "6.orbax-checkpoint-tmp-5",
        folder / "model" / "6.orbax-checkpoint-tmp",
    ]
    for path in leftovers:
        (path / "state").mkdir(parents=True)
    unrelated = folder / "checkpoints" / "1"  # no checkpoint: it has no arrays
    unrelated.mkdir()
    summary = train(experiment(4), folder)  # nothing is left to save but the model
    assert summary.finished and unrelated.exists()
    assert not any(path.exists() for path in [half_removed, *leftovers])
    assert f"removing {leftovers[0]}, left by a save that was cut short" in caplog.text


def test_a_template_that_links_out_of_a_checkpoint_is_not_copied(world, tmp_path):
    base, secret = tmp_path / "base", tmp_path / "secret"
    shutil.copytree(world.base, base)
    secret.write_text("secret")
    (step,) = (base / "checkpoints").iterdir()
    (step / "files" / "chat_template.jinja").symlink_to(secret)
    tuning = world.experiment(2, model=None, tokenizer=None, init_from=str(base))
    with pytest.raises(LinkError, match="chat_template.jinja is a symbolic link to .*secret"):
        train(tuning, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("where", ["program", "step"])
def test_ctrl_c_says_what_is_saved(world, run, tmp_path, monkeypatch, capsys, where):
    folder, experiment = run
    file = tiny_run.config_file(tmp_path, experiment(8))

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    if where == "program":
        monkeypatch.setattr(loop, "open_training", interrupt)
    else:  # a second one, while the loop waits for a save
        monkeypatch.setattr("research.training.saving.RunSaver.save", interrupt)
    for place, message in (
        (folder, f"interrupted: step 4 is saved in {folder}; run the same command to go on there"),
        (tmp_path / "new", f"interrupted: no step is saved in {tmp_path / 'new'}"),
    ):
        with pytest.raises(SystemExit) as end:
            program.main(["--config", str(file), "--workdir", str(place)])
        assert end.value.code == 130
        assert capsys.readouterr().err.splitlines()[-1] == message
    assert (tmp_path / "new").exists() == (where == "step")


def test_an_error_before_anything_is_written_leaves_no_folder(world, tmp_path, monkeypatch):
    def refuse(*_):
        raise ValueError("no")

    monkeypatch.setattr(resume, "check_same_everywhere", refuse)
    with pytest.raises(ValueError, match="^no$"):
        train(world.experiment(2), tmp_path / "a" / "run")
    assert not list(tmp_path.iterdir())
    with locks.lock_file(tmp_path / "a" / "run" / ".lock", "busy"):
        pass  # it was given up


@pytest.mark.heavy
def test_metrics_that_were_lost_before_the_checkpoint_are_said(run, caplog):
    folder, experiment = run
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(lines[:1]))
    train(experiment(5), folder)
    message = "had when step 4 was saved (missing: training of step 2, 3, 4):"
    assert caplog.text.count(message) == 1
    caplog.clear()
    train(experiment(6), folder)  # once is enough
    assert "has not the lines" not in caplog.text and len(tiny_run.lines(folder)) == 3
    (folder / "metrics.jsonl").unlink()
    train(experiment(7), folder)
    assert "when step 6 was saved (missing: training of step 1, 5, 6):" in caplog.text
    caplog.clear()
    (folder / "metrics.jsonl").write_text("".join(lines[:1]))  # one step's for another's
    train(experiment(8), folder)
    message = "(missing: training of step 7; once too often: training of step 1):"
    assert message in caplog.text


def test_a_broken_line_of_metrics_is_named_before_anything_is_compiled(run, monkeypatch):
    folder, experiment = run
    monkeypatch.setattr("research.training.program.Program.compile", None)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write("no line\n")
    with pytest.raises(ValueError, match="metrics.jsonl, line 5: not a JSON object with a step"):
        train(experiment(6), folder)


def test_a_damaged_summary_is_named_with_what_to_do(stopped, tmp_path):
    shutil.copytree(stopped[0], tmp_path / "run")
    (tmp_path / "run" / "summary.json").write_text('{"steps": 4')
    with pytest.raises(ValueError, match="summary.json is damaged .* delete it"):
        train(stopped[1](4), tmp_path / "run")


SIDECAR_FILES = ("tokenizer.json", "metadata.json", "arrays.json", "digests.json")
DAMAGE = {
    "lost": None,
    "empty": b"",
    "torn": b'{"experiment": ',
    "no text": b"\xff\xfe\x00",
    "a list": b"[1, 2]",
    "no keys": b"{}",
    "null": b"null",
    "other keys": b'{"experiment": 3, "model": [], "base": 7, "data": 1, "a": {"shape": 5}}',
}


@pytest.mark.parametrize("is_old", [False, True], ids=["digests", "without"])
@pytest.mark.parametrize("name", SIDECAR_FILES)
def test_damaged_files_of_a_checkpoint_are_named_with_what_to_do(run, monkeypatch, name, is_old):
    folder, experiment = run
    monkeypatch.setattr("research.training.program.Program.compile", lambda *_: 1 / 0)
    monkeypatch.setattr(loop, "_check_memory", None)
    step = folder / "checkpoints" / "4"
    if is_old:  # a checkpoint from before there were digests of its files
        (step / "files" / "digests.json").unlink()
    for content in DAMAGE.values():
        if is_old and name == "digests.json":
            return
        if is_old and name == "arrays.json" and content == b"{}":
            continue  # names that are missing are told when they are read
        whole = (step / "files" / name).read_bytes()
        (step / "files" / name).unlink()
        if content is not None:
            (step / "files" / name).write_bytes(content)
        if name == "digests.json" and content is None:
            assert runs.open_run(folder).checkpoint.step == 4  # as one of old
        else:
            with pytest.raises((ValueError, OSError)) as error:
                train(experiment(6), folder) if name != "arrays.json" else open_checkpoint(
                    folder
                ).abstract()
            message = str(error.value)
            assert str(step) in message and "\n" not in message
            if name != "digests.json" and (not is_old or name != "metadata.json"):
                assert name in message and "move this folder away to fall back to step 2" in message
        (step / "files" / name).write_bytes(whole)
    with pytest.raises(ZeroDivisionError):
        train(experiment(6), folder)


@pytest.mark.heavy
@pytest.mark.parametrize("damage", ["cut", "changed", "lost"])
def test_no_traceback_stands_around_the_error_of_damaged_arrays(run, tmp_path, damage):
    folder, experiment = run
    data = folder / "checkpoints" / "4" / "state" / "d"
    largest = max(data.iterdir(), key=lambda path: path.stat().st_size)
    if damage == "cut":
        os.truncate(largest, 100)
    elif damage == "changed":
        content = bytearray(largest.read_bytes())
        content[3000:3004] = b"xxxx"
        largest.write_bytes(content)
    else:
        shutil.rmtree(data)
    process = tiny_run.start(experiment(6), tmp_path, folder)
    output = process.communicate(timeout=240)[0]
    assert process.returncode == 1 and "Traceback" not in output, output
    last_line = output.splitlines()[-1]
    assert last_line.startswith(f"error: checkpoint {folder}/checkpoints/4 cannot be read")
    assert "move this folder away to fall back to step 2" in last_line


def test_a_finished_run_without_its_checkpoints_is_not_trained_again(stopped, tmp_path, capsys):
    folder, experiment = tmp_path / "run", stopped[1]
    train(experiment(4), folder)
    shutil.rmtree(folder / "checkpoints")  # to save disk space
    before = content(folder)
    assert (
        train(experiment(4), folder).finished and "is finished: 4 of 4" in capsys.readouterr().out
    )
    train(experiment(3), folder)
    assert "is finished: 4 steps, 3 asked for" in capsys.readouterr().out
    with pytest.raises(
        ValueError, match=r"holds a model \(step 4\) and no checkpoint to go on from"
    ):
        train(experiment(6), folder)
    (folder / "summary.json").rename(tmp_path / "summary.json")
    with pytest.raises(ValueError, match="choose another --workdir"):
        train(experiment(4), folder)
    shutil.move(tmp_path / "summary.json", folder / "summary.json")
    assert content(folder) == before
