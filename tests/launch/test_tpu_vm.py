"""graft launch --target tpu-vm against a gcloud whose machines are a folder here."""

import json
import re
import shutil
import subprocess
import sys

import pytest

from research.launch import clone, remote, tpu_vm
from tests.launch import launching

FLAGS = (*launching.TPU_VM, *launching.BUCKET)
ABSENT = {"complains": "NOT_FOUND: Resource 'run-1' was not found", "status": 1}
BUSY = {"complains": "UNAVAILABLE: try again", "status": 1}
FULL = {"complains": "no space left", "status": 1}


def run(*flags):
    return launching.run(*FLAGS, *flags)


def state(name):
    return {"says": json.dumps({"name": "run-1", "state": {"state": name}})}


def states(*names):
    """What describe says, one after the other; before them that there is no such request."""
    return (["describe"], ABSENT, *(state(name) for name in names))


def machine(stand_ins, statuses):
    """The code is copied and started for real, but its training program ends with these statuses,
    one a start."""
    python = stand_ins.folder / "machine" / "python"
    python.write_text(
        f"#!{sys.executable}\n"
        "import os, sys, pathlib\n"
        "count = pathlib.Path('../starts'); n = len(count.read_text()) if count.exists() else 0\n"
        "count.write_text('x' * (n + 1))\n"
        f"status = {statuses!r}[n]\n"
        "print('start', n, *sys.argv[1:], flush=True)\n"
        "os.kill(os.getpid(), -status) if status < 0 else sys.exit(status)\n"
    )
    python.chmod(0o755)
    setup = "tools/setup tpu buckets"
    install = "mkdir -p .venv/bin && ln -sf ../../../python .venv/bin/python"
    return {"run": {setup: install, "python3 ": f"{sys.executable} "}}


def with_gcloud(stand_ins, statuses, *rules, later_states=("ACTIVE",)):
    """gcloud, with rules that come before those of machines that work."""
    answer = machine(stand_ins, statuses)
    copy = (["scp", "--worker=all", "--node=all"], {"copy": 4})
    stand_ins.add("gcloud", *rules, states(*later_states), copy, (["ssh"], answer))


def verbs(stand_ins, *among):
    """What gcloud was asked for, or what of it is among these."""
    every = [call[4] for call in stand_ins.calls() if call[0] == "gcloud"]
    return [verb for verb in every if not among or verb in among]


def starts(stand_ins):
    file = stand_ins.folder / "machine" / "starts"
    return len(file.read_text()) if file.exists() else 0


def test_a_run_from_request_to_deletion(stand_ins, capfd):
    with_gcloud(stand_ins, [0], later_states=("WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"))
    assert run("--slices", "2", "--spot", "--config.steps=7") == 0
    create = next(call for call in stand_ins.calls() if call[4] == "create")
    assert create[1:5] == ["compute", "tpus", "queued-resources", "create"]
    assert {
        "run-1",
        "--node-count=2",
        "--node-prefix=run-1",
        "--accelerator-type=v5litepod-16",
        "--runtime-version=v2-alpha-tpuv5-lite",
        "--spot",
    } <= {*create}
    assert verbs(stand_ins)[-1] == "delete" and "--force" in stand_ins.calls()[-1]
    for call in stand_ins.calls():  # on every machine, but for the log
        if call[4] in ("ssh", "scp") and "follow" not in call[-1]:
            assert {"--worker=all", "--node=all"} <= {*call}, call
    output = capfd.readouterr().out
    assert "launch: PROVISIONING" in output
    assert "start 0 -m research.train" in output and "--config.steps=7" in output
    # the code is that of the clone, with what is new in it
    graft = stand_ins.folder / "machine" / "graft"
    assert (graft / "research/commands/train.py").exists() and not (graft / ".git").exists()


def test_a_preempted_slice_is_deleted_and_asked_for_again(stand_ins, capfd):
    # the run fails at once, with a status like that of an error; Google says why a while later
    later = ("ACTIVE", "ACTIVE", "ACTIVE", "SUSPENDED", "SUSPENDED", "WAITING_FOR_RESOURCES")
    with_gcloud(stand_ins, [1, 0], later_states=(*later, "ACTIVE"))
    assert run() == 0
    requests = verbs(stand_ins, "create", "delete")
    assert requests == ["create", "delete", "create", "delete"] and starts(stand_ins) == 2
    assert "launch: preempted; again (1 of 10)" in capfd.readouterr().out


@pytest.mark.parametrize("status", [75, -9, -6])
def test_a_run_that_was_stopped_on_machines_that_stay_is_started_again(stand_ins, status):
    with_gcloud(stand_ins, [status, status, 0])
    assert run() == 0
    assert verbs(stand_ins).count("create") == 1 and starts(stand_ins) == 3


def test_restarts_end(stand_ins, capfd):
    with_gcloud(stand_ins, [75] * 9)
    assert run("--restarts", "1") == 75
    assert starts(stand_ins) == 2 and verbs(stand_ins)[-1] == "delete"
    assert "1 restarts are used up" in capfd.readouterr().out


def test_an_error_of_the_run_is_not_repeated_and_the_slice_does_not_stay(stand_ins):
    with_gcloud(stand_ins, [1])
    assert run() == 1
    assert verbs(stand_ins).count("create") == 1 and verbs(stand_ins)[-1] == "delete"
    assert starts(stand_ins) == 1


def test_an_error_on_one_machine_is_one_of_the_run(stand_ins):
    status = {"says": "graft-status 75\ngraft-status 1\n"}
    with_gcloud(stand_ins, [75], (["remote.py status"], status))
    assert run() == 1 and starts(stand_ins) == 1


def test_what_fails_once_is_tried_again(stand_ins, capfd):
    working = machine(stand_ins, [0])
    rules = [
        (["describe"], BUSY, ABSENT, BUSY, state("PROVISIONING"), BUSY, state("ACTIVE")),
        (["mkdir"], BUSY, BUSY, working),
        (["scp"], BUSY, {"copy": 4}),
        (["tools/setup"], BUSY, working),
        (["follow "], {"status": 255}, working),
        (["remote.py status"], BUSY, working),
        (["delete"], BUSY, {}),
    ]
    with_gcloud(stand_ins, [0], *rules)
    assert run() == 0
    assert verbs(stand_ins, "create", "delete") == ["create", "delete", "delete"]
    assert starts(stand_ins) == 1
    assert "UNAVAILABLE: try again; tried again" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ((["create"], {"complains": "quota exceeded", "status": 1}), "quota exceeded"),
        ((["describe"], ABSENT, state("FAILED")), "run-1 was refused: .*FAILED"),
        ((["mkdir"], FULL), "no space left"),
        ((["scp"], FULL), "no space left"),
        ((["tools/setup"], FULL), "no space left"),
        ((["remote.py start"], FULL), "no space left"),
    ],
    ids=["create", "refused", "ssh", "scp", "install", "start"],
)
def test_what_goes_wrong_is_said_and_nothing_is_left_that_costs(stand_ins, rule, message):
    with_gcloud(stand_ins, [0], rule)
    assert re.search(message, run())
    assert verbs(stand_ins)[-1] == "delete" and starts(stand_ins) == 0


@pytest.mark.heavy
def test_a_slice_that_is_kept_or_cannot_be_deleted_is_said_to_cost(stand_ins, capfd):
    ends = r"costs while .*: gcloud compute tpus queued-resources delete run-1 --force --project=p"
    with_gcloud(stand_ins, [0], (["tools/setup"], FULL), (["delete"], BUSY))
    assert "no space left" in run()
    assert re.search(f"could not be deleted, and {ends}", capfd.readouterr().out)
    with_gcloud(stand_ins, [0], (["tools/setup"], FULL))
    assert "no space left" in run("--keep")
    assert re.search(f"run-1 is kept, and {ends}", capfd.readouterr().out)
    with_gcloud(stand_ins, [0, 0], (["delete"], BUSY))
    assert run() == 1 and re.search(ends, capfd.readouterr().out)
    assert run("--keep") == 0


def test_a_full_disk_here_leaves_nothing_that_costs(stand_ins, monkeypatch):
    def pack(*_):
        raise OSError("No space left on this device")

    monkeypatch.setattr(clone, "pack", pack)
    with_gcloud(stand_ins, [0])
    assert "No space left on this device" in run()
    assert verbs(stand_ins)[-1] == "delete"


def test_a_look_that_fails_leaves_everything_as_it_was(stand_ins):
    stand_ins.add("gcloud", ([], BUSY))
    assert "try again" in run()
    assert verbs(stand_ins) == ["describe"] * 3


def test_the_same_command_goes_on_with_a_slice_that_is_there(stand_ins, capfd):
    running = ({"says": "graft-status running\n"}, {"says": "graft-status 0\n"})
    follow = (["follow"], {"says": "step 7\n"})
    rules = (["describe"], state("ACTIVE")), (["remote.py status"], *running), follow
    with_gcloud(stand_ins, [], *rules)
    assert run() == 0
    assert verbs(stand_ins, "create", "scp", "delete") == ["delete"]
    output = capfd.readouterr().out
    assert "running there already" in output and "step 7" in output


def test_the_same_command_goes_on_with_a_request_that_waits(stand_ins):
    waiting = (["describe"], state("WAITING_FOR_RESOURCES"), state("ACTIVE"))
    with_gcloud(stand_ins, [0], waiting)
    assert run() == 0
    assert verbs(stand_ins, "create", "delete") == ["delete"] and starts(stand_ins) == 1


def test_a_request_that_is_gone_when_looked_at_is_made_again(stand_ins):
    with_gcloud(stand_ins, [0], (["describe"], state("SUSPENDED"), state("ACTIVE")))
    assert run() == 0
    assert verbs(stand_ins, "create", "delete") == ["delete", "create", "delete"]


def test_a_slice_that_another_command_deletes_is_not_asked_for_again(stand_ins):
    with_gcloud(stand_ins, [0], (["describe"], ABSENT, state("PROVISIONING"), ABSENT))
    assert "was deleted by another command" in run()
    assert verbs(stand_ins, "create") == ["create"]


def test_a_program_that_is_not_there_is_named(stand_ins, monkeypatch):
    git = shutil.which("git")
    monkeypatch.setattr(clone, "FILES", (git, *clone.FILES[1:]))
    monkeypatch.setenv("PATH", str(stand_ins.folder))
    assert "gcloud is not on PATH: install the Google Cloud CLI" in run()


def test_a_machine_with_an_old_python_gets_another_once(tmp_path):
    """The step itself, with a python3 that is 3.10 and a uv that is not there before."""
    (tmp_path / "python3").write_text(
        f'#!/bin/sh\ncase "$*" in *version_info*) exit 1;; esac\necho "$*" >>{tmp_path}/calls\n'
    )
    (tmp_path / "python3").chmod(0o755)
    path = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    subprocess.run(["sh", "-c", tpu_vm.PYTHON], env=path, check=True)
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls == ["-m pip install --quiet --user uv", "-m uv python install 3.12"]
    (tmp_path / "python3").write_text("#!/bin/sh\n[ $1 = -c ]\n")
    subprocess.run(["sh", "-c", tpu_vm.PYTHON], env=path, check=True)


def test_a_run_that_vanished_was_stopped_and_one_that_runs_is_not_started_twice(tmp_path, capsys):
    remote.status(tmp_path)
    (tmp_path / "pid").write_text("999999999")
    remote.status(tmp_path)
    sleeping = subprocess.Popen(["sleep", "60"])
    try:
        (tmp_path / "pid").write_text(str(sleeping.pid))
        remote.status(tmp_path)
        remote.start(tmp_path, ["touch", str(tmp_path / "again")])
    finally:
        sleeping.kill()
        sleeping.wait()
    statuses = capsys.readouterr().out.split()[1::2]
    assert statuses == ["none", "75", "running"] and not (tmp_path / "log").exists()
