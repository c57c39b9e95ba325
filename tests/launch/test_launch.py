"""What graft launch prints and refuses before anything is started, and the job that Slurm gets.

`python -m tests.launch.test_launch` writes tests/launch/dry_runs/*.txt anew; read the difference.
"""

import argparse
import contextlib
import io
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from research.commands import launch
from research.config import schema
from research.experiment import Experiment
from research.launch import clone, google, slurm
from research.launch.job import Job, Shell
from research.runtime import environment
from tests.launch.launching import (
    BUCKET,
    CHIPS,
    CONFIG,
    GKE,
    LOCAL,
    SLURM,
    TEXT,
    TOKENIZER,
    TPU_VM,
    run,
)

FOLDER = Path(__file__).parent / "dry_runs"
DRY_RUNS = {
    "tpu_vm": (*TPU_VM, *BUCKET, "--slices", "2", "--spot"),
    "gke": (*GKE, *BUCKET, "--queue", "team", "--service-account", "reader", "--spot"),
    "slurm": (*SLURM, "--nodes", "2", "--partition", "gpu", "--sbatch=--account=lab"),
    "local": (*LOCAL, "--processes", "2", "--topology", "v5e:4x4", "--config.steps=7"),
}


def dry_run(target):
    """What it prints, without what only this machine has."""
    with contextlib.redirect_stdout(io.StringIO()) as output:
        assert run(*DRY_RUNS[target], "--dry-run") == 0
    text = output.getvalue().replace(sys.executable, "python")
    text = text.replace(str(environment.ROOT), "/path/to/graft")
    return re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:PORT", text)


@pytest.mark.parametrize("target", DRY_RUNS)
def test_a_dry_run_prints_every_command_and_runs_none(stand_ins, target):
    for name in ("gcloud", "kubectl", "sbatch"):
        stand_ins.add(name)
    assert dry_run(target) == (FOLDER / f"{target}.txt").read_text(encoding="utf-8")
    assert not stand_ins.calls()


@pytest.mark.parametrize("page", ["launch_tpu_vm", "launch_gke", "launch_slurm"])
def test_the_example_of_a_page_can_be_launched(stand_ins, page):
    text = (environment.ROOT / "docs" / "guides" / f"{page}.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"graft launch (.* --dry-run)\n", text.replace("\\\n", " "))
    with pytest.raises(SystemExit) as exit_info:
        launch.main(shlex.split(example))
    assert exit_info.value.code == 0


# --- what is sent, and what the machines could not reach ----------------------------------------


def test_the_commands_of_a_dry_run_pack_what_is_packed(tmp_path, capsys):
    for name in (".gitignore", "a.py", "data/x", "sub/b c.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("/data/\n")
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    archive = tmp_path / "data" / "launch" / "x.tar.gz"
    clone.pack(tmp_path, archive, Shell(dry_run=False))
    expected = [".gitignore", "a.py", "sub/b c.py"]
    assert sorted(clone.files(tmp_path)) == listing(archive) == expected
    archive.unlink()
    for line in capsys.readouterr().out.splitlines():
        subprocess.run(["sh", "-c", line.removeprefix("$ ")], cwd=tmp_path, check=True)
    assert listing(archive) == expected
    (tmp_path / "other").mkdir()
    with pytest.raises(ValueError, match="is no git clone"):
        clone.files(Path("/"))


def test_packing_again_leaves_whole_what_another_launch_is_reading(tmp_path):
    folder, archive = tmp_path / "clone", tmp_path / "x.tar.gz"
    subprocess.run(["git", "init", "-q", folder], check=True)
    (folder / "a.py").write_text("a")
    clone.pack(folder, archive, Shell(dry_run=False))
    whole = archive.read_bytes()
    with archive.open("rb") as reading:
        (folder / "b.py").write_text("b" * 1000)
        clone.pack(folder, archive, Shell(dry_run=False))
        assert reading.read() == whole
    assert sorted(listing(archive)) == ["a.py", "b.py"]
    assert sorted(tmp_path.iterdir()) == [folder, archive]  # and nothing else is left


def listing(archive):
    tar = subprocess.run(["tar", "-tzf", archive], capture_output=True, text=True, check=True)
    return sorted(tar.stdout.splitlines())


def source(**fields):
    return {"name": "web", "kind": "jsonl", **fields}


@pytest.mark.parametrize(
    ("changes", "bad_key"),
    [
        ({"tokenizer": "gs://b/t.json", "sources": [source(path="gs://b/{split}.jsonl")]}, ""),
        ({"tokenizer": "words.json", "sources": [source(path="text/{split}-*.jsonl")]}, ""),
        ({"tokenizer": "run", "sources": [{"name": "graft_books"}]}, ""),
        ({"tokenizer": "words.jso"}, "tokenizer"),
        ({"tokenizer": "/root/words.json"}, "tokenizer"),
        ({"init_from": "runs/base"}, "init_from"),
        (
            {"sources": [{"name": "graft_books"}, source(path="text/{split}.parquet")]},
            r"data.sources\[1\].path",
        ),
    ],
)
def test_what_is_on_this_machine_only_is_refused(monkeypatch, changes, bad_key):
    clone_files = ["configs/a.py", "words.json", "run/config.json", "text/train-1.jsonl"]
    monkeypatch.setattr(clone, "files", lambda folder: clone_files)
    data = {"sources": changes.pop("sources", [{"name": "graft_books"}]), "sequence_length": 8}
    base = {"model": {"vocabulary": 9}, "tokenizer": "gs://b/t.json", "steps": 1}
    base["model"] |= {"width": 8, "layers": 1, "heads": 1, "kv_heads": 1, "mlp_width": 8}
    content = {**base, "data": {**data, "batch_size": 1}, **changes}
    job = Job("x", "configs/a.py:arg", "gs://b/run")
    experiment = schema.build(Experiment, content)
    if not bad_key:
        google.check_reachable(job, experiment, Path("."))
        return
    with pytest.raises(ValueError, match=rf"this machine only.*--config\.{bad_key}=gs://") as error:
        google.check_reachable(job, experiment, Path("."))
    assert str(error.value).count("\n") == 0


@pytest.mark.parametrize("target", [TPU_VM, GKE])
def test_a_config_that_is_not_in_the_clone_is_refused(stand_ins, tmp_path, target):
    config = tmp_path / "config.py"
    config.write_text((environment.ROOT / CONFIG).read_text())
    message = run(*target, *BUCKET, config=str(config))
    assert re.search(r"--config /\S+/config.py: name a file of the clone", message)


# --- what is wrong is said before anything is started -------------------------------------------


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((*TPU_VM, *BUCKET, "--config.stps=7"), "did you mean config.steps"),
        ((*TPU_VM, *BUCKET, "--workdir", "runs/here"), "share no disk"),
        ((*TPU_VM, *BUCKET, "--topology", "tpu7x:4x4x4"), "take --target gke"),
        ((*TPU_VM, *BUCKET, "--topology", "v5e:4xx"), "such as v5e:4x4"),
        ((*TPU_VM, *BUCKET, "--topology", "v5e:3x2"), "6 chips fill no machines"),
        ((*TPU_VM, *BUCKET, "--name", "Run 1"), "lower-case letters"),
        ((*GKE, *BUCKET, "--name", "run.1"), "lower-case letters"),
        ((*TPU_VM, *BUCKET, "--slices", "0"), "--slices is 1 at least"),
        ((*TPU_VM, *CHIPS), r"(?s)data/smollm2/tokenizer.json is on this .*\ndata/web is on this"),
        ((*GKE, *CHIPS, TOKENIZER), r"data/web is on .*--config.data.sources\[0\].path=gs://"),
        ((*GKE, *CHIPS, TEXT), "--config.tokenizer=gs://"),
        (("--target", "tpu-vm", *BUCKET), "give --project and --zone"),
        (("--target", "gke", *BUCKET), "give --image.*docs/guides/launch_gke.md"),
        ((*SLURM, "--partition", "a\nb"), "has a space"),
        ((*SLURM, "--name", "run 1"), "has a space"),
        ((*SLURM, "--sbatch", "account"), "is no flag of sbatch"),
        ((*LOCAL, "--processes", "0"), "one at least"),
        ((*LOCAL, "--heartbeat-timeout", "0.5"), "5 seconds or more, or 0"),
        ((*LOCAL, "--delete"), "nothing to delete"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_started(stand_ins, flags, message):
    for name in ("gcloud", "kubectl", "sbatch"):
        stand_ins.add(name)
    assert re.search(message, run(*flags)) and not stand_ins.calls()


@pytest.mark.parametrize("folder", ["runs/v1.2", "runs/2026", "runs/" + "x" * 50])
def test_a_local_run_may_have_any_folder(stand_ins, folder):
    assert run("--target", "local", "--workdir", folder, "--dry-run") == 0


@pytest.mark.parametrize("target", [(*TPU_VM, *CHIPS), (*GKE, *CHIPS), SLURM])
def test_delete_ends_what_the_run_holds(stand_ins, target):
    for name in ("gcloud", "kubectl", "scancel"):
        stand_ins.add(name)
    launch.main(["--config", CONFIG, *target, "--delete"])
    (call,) = stand_ins.calls()
    assert any("delete" in word or "scancel" in word for word in call)
    assert any("run-1" in word for word in call)


def test_ctrl_c_ends_the_following_alone(stand_ins, monkeypatch, capfd):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Shell, "follow", interrupt)
    stand_ins.add("kubectl", (["get"], {"says": '{"status": {"replicatedJobsStatus": []}}'}))
    monkeypatch.setattr(Shell, "rest", interrupt)
    assert run(*GKE, *BUCKET) == 130
    assert "What was started goes on, and costs" in capfd.readouterr().out
    assert not any("delete" in call for call in stand_ins.calls())


@pytest.mark.parametrize(
    ("topology", "type_", "hosts", "chips"),
    [
        ("v5e:1x1", "v5litepod-1", 1, 1),
        ("v5e:2x4", "v5litepod-8", 1, 8),
        ("v5e:4x4", "v5litepod-16", 4, 4),
        ("v4:2x2x2", "v4-16", 2, 4),
        ("v5p:4x4x4", "v5p-128", 16, 4),
        ("v6e:16x16", "v6e-256", 64, 4),
    ],
)
def test_a_slice_is_called_and_cut_as_google_does(topology, type_, hosts, chips):
    one = google.find(topology)
    assert (one.accelerator_type, one.hosts, one.chips_of_host) == (type_, hosts, chips)


# --- Slurm --------------------------------------------------------------------------------------


def test_a_batch_job_is_submitted(stand_ins, capfd):
    stand_ins.add("sbatch", ([], {"says": "4711;cluster\n"}), reads=True)
    assert run(*SLURM, "--nodes", "2", "--sbatch=--account=lab") == 0
    name, flag, script = stand_ins.calls()[0]
    assert (name, flag) == ("sbatch", "--parsable")
    for line in ("--nodes=2", "--ntasks-per-node=8", "--requeue", "--account=lab"):
        assert f"#SBATCH {line}\n" in script
    assert "tail -F run-1-4711.log" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("status", "restart_count", "is_requeued"),
    [
        (0, None, False),
        (75, None, True),
        (75, "9", True),
        (75, "10", False),
        (137, None, True),
        (137, "10", False),
        (1, None, False),
        (127, None, False),
    ],
)
def test_the_batch_script_queues_itself_again_when_it_was_stopped(
    stand_ins, monkeypatch, status, restart_count, is_requeued
):
    stand_ins.add("srun", ([], {"status": status}))
    stand_ins.add("scontrol")
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    if restart_count:
        monkeypatch.setenv("SLURM_RESTART_COUNT", restart_count)
    parser = argparse.ArgumentParser()
    slurm.add_flags(parser)
    job = Job("run-1", CONFIG, "/shared/run 1", ("steps=7",))
    script = slurm.script(job, parser.parse_known_args(SLURM)[0])
    assert subprocess.run(["bash", "-c", script]).returncode == status
    calls = stand_ins.calls()
    assert "/shared/run 1" in calls[0] and "--config.steps=7" in calls[0]
    assert (calls[1:] == [["scontrol", "requeue", "4711"]]) == is_requeued


def test_sbatch_that_refuses_is_heard(stand_ins):
    stand_ins.add("sbatch", ([], {"complains": "Invalid partition", "status": 1}), reads=True)
    assert "Invalid partition" in run(*SLURM)


if __name__ == "__main__":
    for name in DRY_RUNS:
        (FOLDER / f"{name}.txt").write_text(dry_run(name), encoding="utf-8")
