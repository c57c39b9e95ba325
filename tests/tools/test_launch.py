"""tools/launch.py against stand-ins of what it drives, and for real on this machine."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from research.checkpoint import open_checkpoint
from research.experiment import CheckpointConfig
from tests import tiny_run
from tests.tools.stand_in import StandIns
from tools import launch
from tools.launching import google, remote, slurm, tpu_vm
from tools.launching.job import Job, Shell

ROOT = tiny_run.ROOT
CONFIG = "configs/pretrain/smollm2_135m.py"
BUCKET = ("--workdir", "gs://made/run-1", "--topology", "v5e:4x4", "--anyway")
TPU_VM = ("--target", "tpu-vm", "--project", "p", "--zone", "z", *BUCKET)
GKE = ("--target", "gke", "--image", "graft:1", *BUCKET)


@pytest.fixture
def stand_ins(tmp_path, monkeypatch):
    monkeypatch.setattr(Shell, "INTERVAL", 0.0)
    monkeypatch.setattr(remote, "INTERVAL", 0.05)
    monkeypatch.chdir(ROOT)
    return StandIns(tmp_path / "bin", monkeypatch)


def run(*words, config=CONFIG):
    """The launcher's exit status."""
    with pytest.raises(SystemExit) as ended:
        launch.main(["--config", config, *words])
    return ended.value.code


def verbs(stand_ins):
    """What gcloud was asked for."""
    return [call[4] for call in stand_ins.calls() if call[0] == "gcloud"]


def state(name):
    return {"says": json.dumps({"name": "run-1", "state": {"state": name}})}


# --- TPU VMs ------------------------------------------------------------------------------------


def machine(stand_ins, statuses):
    """gcloud whose machines are a folder here: the code is copied and started for real, but its
    training program ends with these statuses, one a start."""
    python = stand_ins.folder / "machine" / "python"
    python.write_text(
        f"#!{sys.executable}\n"
        "import sys, pathlib\n"
        "count = pathlib.Path('../starts'); n = len(count.read_text()) if count.exists() else 0\n"
        "count.write_text('x' * (n + 1))\n"
        f"print('start', n, *sys.argv[1:]); sys.exit({statuses!r}[n])\n"
    )
    python.chmod(0o755)
    setup = "tools/setup tpu buckets"
    install = "mkdir -p .venv/bin && ln -sf ../../../python .venv/bin/python"
    return {"run": {setup: install, "python3 ": f"{sys.executable} "}}


def with_gcloud(stand_ins, monkeypatch, statuses, states, **more):
    answer = machine(stand_ins, statuses)
    # scp for real: into the folder that stands for the machine
    stand_ins.add(
        "gcloud",
        *more.get("first", ()),
        (["describe"], *map(state, states)),
        (["ssh"], answer),
    )
    packed = tpu_vm.pack
    monkeypatch.setattr(
        tpu_vm,
        "pack",
        lambda folder, archive: packed(folder, stand_ins.folder / "machine" / "graft.tar.gz"),
    )


def test_a_run_on_tpu_vms_from_request_to_deletion(stand_ins, monkeypatch, capfd):
    waiting = ["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]
    with_gcloud(stand_ins, monkeypatch, [0], waiting)
    assert run(*TPU_VM, "--slices", "2", "--spot", "--config.steps=7") == 0
    create = stand_ins.calls()[0]
    assert create[1:7] == [
        "compute",
        "tpus",
        "queued-resources",
        "create",
        "run-1",
        "--node-count=2",
    ]
    assert {
        "--accelerator-type=v5litepod-16",
        "--runtime-version=v2-alpha-tpuv5-lite",
        "--spot",
    } <= {*create}
    assert verbs(stand_ins)[-1] == "delete" and "--force" in stand_ins.calls()[-1]
    said = capfd.readouterr().out
    assert "launch: PROVISIONING" in said
    assert "start 0 -m research.train" in said and "--config.steps=7" in said
    # the code is that of the clone, with what is new in it
    graft = stand_ins.folder / "machine" / "graft"
    assert (graft / "research/train.py").exists() and not (graft / ".git").exists()


def test_a_preempted_slice_is_deleted_and_asked_for_again(stand_ins, monkeypatch, capfd):
    # active; gone when the first run has ended; again, and active to the end
    states = ["ACTIVE", "SUSPENDED", "WAITING_FOR_RESOURCES", "ACTIVE"]
    with_gcloud(stand_ins, monkeypatch, [1, 0], states)
    assert run(*TPU_VM) == 0
    asked = [verb for verb in verbs(stand_ins) if verb in ("create", "delete")]
    assert asked == ["create", "delete", "create", "delete"]
    assert "start 1 -m research.train" in capfd.readouterr().out


def test_a_run_that_was_told_to_stop_on_machines_that_stay_is_started_again(stand_ins, monkeypatch):
    with_gcloud(stand_ins, monkeypatch, [75, 75, 0], ["ACTIVE"])
    assert run(*TPU_VM) == 0
    assert verbs(stand_ins).count("create") == 1
    assert (stand_ins.folder / "machine" / "starts").read_text() == "xxx"


def test_an_error_of_the_run_is_not_repeated_and_the_slice_does_not_stay(stand_ins, monkeypatch):
    with_gcloud(stand_ins, monkeypatch, [1], ["ACTIVE"])
    assert run(*TPU_VM) == 1
    assert verbs(stand_ins).count("create") == 1 and verbs(stand_ins)[-1] == "delete"


def test_a_lost_connection_does_not_end_the_run(stand_ins, monkeypatch, capfd):
    lost = (["follow "], {"status": 255}, machine(stand_ins, [0]))
    lost_status = (
        ["remote.py status"],
        {"complains": "no route", "status": 255},
        machine(stand_ins, [0]),
    )
    with_gcloud(stand_ins, monkeypatch, [0], ["ACTIVE"], first=(lost, lost_status))
    assert run(*TPU_VM) == 0
    assert "no route" in capfd.readouterr().out
    assert (stand_ins.folder / "machine" / "starts").read_text() == "x"


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (((["create"], {"complains": "quota exceeded", "status": 1}),), "quota exceeded"),
        (((["describe"], state("FAILED")),), "run-1 was refused"),
        (
            (
                (["describe"], state("ACTIVE")),
                (["tools/setup"], {"complains": "no space left", "status": 1}),
            ),
            "no space left",
        ),
    ],
    ids=["create", "failed", "install"],
)
def test_what_gcloud_refuses_is_said(stand_ins, rules, message):
    stand_ins.add("gcloud", *rules)
    assert re.search(message, run(*TPU_VM))


def test_a_program_that_is_not_there_is_named(stand_ins, monkeypatch):
    monkeypatch.setenv("PATH", str(stand_ins.folder))
    assert "gcloud is not on PATH: install the Google Cloud CLI" in run(*TPU_VM)


# --- GKE ----------------------------------------------------------------------------------------


def jobset(ready=0, **status):
    content = {"status": {"replicatedJobsStatus": [{"name": "slice", "ready": ready}], **status}}
    return {"says": json.dumps(content)}


@pytest.mark.parametrize(("end", "status"), [("Completed", 0), ("Failed", 1)])
def test_a_jobset_is_applied_and_followed_through_restarts(stand_ins, capfd, end, status):
    stand_ins.add(
        "kubectl",
        (["get"], jobset(), jobset(1), jobset(0), jobset(1), jobset(terminalState=end)),
        (["logs"], {"says": "step 1\n"}, {"says": "step 2\n", "status": 1}),
        reads=True,
    )
    assert run(*GKE, "--namespace", "team") == status
    apply = stand_ins.calls()[0]
    assert apply[:6] == ["kubectl", "apply", "--namespace", "team", "-f", "-"]
    assert "kind: JobSet" in apply[6]
    said = capfd.readouterr().out
    assert said.count("1 of 1 slices are ready") == 2 and f"has ended: {end}" in said
    assert "step 1" in said and "step 2" in said


def test_a_cluster_without_jobset_says_so(stand_ins):
    error = 'no matches for kind "JobSet" in version "jobset.x-k8s.io/v1alpha2"'
    stand_ins.add("kubectl", (["apply"], {"complains": error, "status": 1}), reads=True)
    assert 'no matches for kind "JobSet"' in run(*GKE)


def test_a_queue_and_an_account_reach_the_manifest(stand_ins, capfd):
    assert run(*GKE, "--queue", "team", "--service-account", "reader", "--spot", "--dry-run") == 0
    said = capfd.readouterr().out
    for line in (
        "kueue.x-k8s.io/queue-name: team",
        "serviceAccountName: reader",
        "gke-spot: 'true'",
    ):
        assert line in said, line
    assert not stand_ins.calls()


# --- Slurm --------------------------------------------------------------------------------------

SLURM = ("--target", "slurm", "--workdir", "/shared/run 1", "--name", "run-1")


def test_a_batch_job_is_submitted(stand_ins, capfd):
    stand_ins.add("sbatch", ([], {"says": "4711;cluster\n"}), reads=True)
    assert run(*SLURM, "--nodes", "2", "--sbatch=--account=lab") == 0
    name, flag, script = stand_ins.calls()[0]
    assert (name, flag) == ("sbatch", "--parsable")
    for line in ("--nodes=2", "--ntasks-per-node=8", "--requeue", "--account=lab"):
        assert f"#SBATCH {line}\n" in script
    assert "tail -F run-1-4711.log" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("status", "restarted", "requeued"),
    [(0, None, False), (75, None, True), (75, "9", True), (75, "10", False), (1, None, False)],
)
def test_the_batch_script_queues_itself_again_when_it_was_stopped(
    stand_ins, monkeypatch, status, restarted, requeued
):
    stand_ins.add("srun", ([], {"status": status}))
    stand_ins.add("scontrol")
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    if restarted:
        monkeypatch.setenv("SLURM_RESTART_COUNT", restarted)
    arguments = argparse_of(*SLURM)
    job = Job("run-1", CONFIG, "/shared/run 1", ("steps=7",))
    script = slurm.script(job, arguments)
    assert subprocess.run(["bash", "-c", script]).returncode == status
    calls = stand_ins.calls()
    assert "/shared/run 1" in calls[0] and "--config.steps=7" in calls[0]
    assert (calls[1:] == [["scontrol", "requeue", "4711"]]) == requeued


def argparse_of(*words):
    import argparse

    parser = argparse.ArgumentParser()
    slurm.add_flags(parser)
    return parser.parse_known_args(words)[0]


def test_sbatch_that_refuses_is_heard(stand_ins):
    stand_ins.add("sbatch", ([], {"complains": "Invalid partition", "status": 1}), reads=True)
    assert "Invalid partition" in run(*SLURM)


# --- what is wrong is said before anything is started -------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((*TPU_VM, "--config.stps=7"), "did you mean config.steps"),
        ((*TPU_VM, "--workdir", "runs/here"), "share no disk"),
        ((*TPU_VM, "--topology", "tpu7x:4x4x4"), "take --target gke"),
        ((*TPU_VM, "--topology", "v5e:4xx"), "such as v5e:4x4"),
        ((*TPU_VM, "--topology", "v5e:3x2"), "6 chips fill no machines"),
        ((*TPU_VM, "--name", "Run 1"), "lower-case letters"),
        ((*TPU_VM, "--slices", "0"), "--slices is 1 at least"),
        (("--target", "tpu-vm", *BUCKET), "give --project and --zone"),
        (("--target", "gke", *BUCKET), "give --image"),
        ((*SLURM, "--partition", "a\nb"), "has a space"),
        ((*SLURM, "--sbatch", "account"), "is no flag of sbatch"),
        (("--target", "local", "--workdir", "runs/x", "--processes", "0"), "one at least"),
        (("--target", "local", "--workdir", "runs/x", "--delete"), "nothing to delete"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_started(stand_ins, words, message):
    for name in ("gcloud", "kubectl", "sbatch"):
        stand_ins.add(name)
    assert re.search(message, run(*words)) and not stand_ins.calls()


@pytest.mark.parametrize("target", [TPU_VM, GKE, SLURM])
def test_delete_ends_what_the_run_holds(stand_ins, target):
    for name in ("gcloud", "kubectl", "scancel"):
        stand_ins.add(name)
    launch.main(["--config", CONFIG, *target, "--delete"])
    (call,) = stand_ins.calls()
    assert any("delete" in word or "scancel" in word for word in call)
    assert any("run-1" in word for word in call)


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
    found = google.find(topology)
    assert (found.accelerator_type, found.hosts, found.chips_of_host) == (type_, hosts, chips)


# --- this machine, for real ---------------------------------------------------------------------


@pytest.mark.heavy
def test_a_local_run_whose_process_is_killed_starts_again_and_ends_as_if_it_had_not(
    world, tmp_path
):
    experiment = world.experiment(12, checkpoint=CheckpointConfig(every=4, keep_last=9))
    folder = tmp_path / "run"
    file = tiny_run.config_file(tmp_path, experiment)
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=4")
    words = ["--target", "local", "--processes", "2", "--config", str(file)]
    line = [sys.executable, "tools/launch.py", *words, "--workdir", str(folder)]
    piped = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    environment = {**os.environ, "XLA_FLAGS": flags}
    started = subprocess.Popen(line, cwd=ROOT, env=environment, **piped)
    tiny_run.wait_for(started, lambda: len(tiny_run.lines(folder)) >= 5)
    children = Path(f"/proc/{started.pid}/task/{started.pid}/children").read_text().split()
    os.kill(int(children[1]), signal.SIGKILL)
    output = started.communicate(timeout=240)[0]
    assert started.returncode == 0 and "started again" in output, output
    whole = subprocess.run(
        [*line[:-1], str(tmp_path / "whole")], cwd=ROOT, env=environment, capture_output=True
    )
    assert whole.returncode == 0
    assert open_checkpoint(folder).step == 12
    assert tiny_run.content(folder, 12) == tiny_run.content(tmp_path / "whole", 12)
