"""graft launch --study: a study's shares on every target, against stand-ins; as an array for real.
The manifest of the Job itself: test_manifests.py."""

import argparse
import json
import os
import re
import subprocess

import pytest

from research.commands import launch
from research.launch import slurm
from research.launch.job import StudyJob
from research.runtime import programs
from research.runtime.distributed import EXIT_RESTART
from research.studies.ledger import Ledger
from tests.helpers import tiny_run
from tests.launch import launching

METHODS = ("--study", "experiments/methods", "--shares", "2")
CHIPS = ("--workdir", "gs://made/run-1", "--topology", "v5e:2x4", "--anyway")
ABSENT = {"complains": "NOT_FOUND: Resource was not found", "status": 1}


def run(*flags):
    with pytest.raises(SystemExit) as exit_info:
        launch.main([*METHODS, *flags])
    return exit_info.value.code


def job(study="experiments/methods", workdir="/shared/run 1"):
    return StudyJob("run-1", "configs/a.py", workdir, study=str(study), shares=2)


def script_of(study_job, *flags):
    parser = argparse.ArgumentParser()
    slurm.add_flags(parser)
    return slurm.study_script(study_job, parser.parse_args(flags))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((*launching.GKE, *CHIPS, "--config", "configs/a.py"), "--config FILE, or --study DIR"),
        ((*launching.GKE, *CHIPS, "--config.steps=1"), "change its study.py"),
        ((*launching.GKE, *CHIPS, "--shares", "0"), "--shares is 1 at least"),
        ((*launching.GKE, *CHIPS, "--topology", "v5e:4x4"), "one machine, of 8 chips at most"),
        ((*launching.TPU_VM, *CHIPS, "--slices", "2"), "--shares N takes N of them"),
        ((*launching.TPU_VM, *CHIPS, "--workdir", "runs/here"), "share no disk"),
        ((*launching.TPU_VM, *CHIPS, "--study", "experiments/nothing"), "no file|no such file"),
        ((*launching.SLURM, "--nodes", "2"), "--shares N takes N of them"),
        ((*launching.LOCAL, "--processes", "2"), "give --shares N"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_started(stand_ins, flags, message):
    for name in ("gcloud", "kubectl", "sbatch"):
        stand_ins.add(name)
    assert re.search(message, str(run(*flags)), re.IGNORECASE) and not stand_ins.calls()


def test_bases_that_only_this_machine_has_are_refused_unless_the_study_makes_them(
    stand_ins, tmp_path
):
    assert run(*launching.GKE, *CHIPS, "--dry-run") == 0
    text = "from experiments.methods import study\n\nimport dataclasses\n\n\ndef get_study():\n"
    text += "    return dataclasses.replace(study.get_study(), bases={})\n"
    (tmp_path / "study.py").write_text(text)
    message = run(*launching.GKE, *CHIPS, "--study", str(tmp_path))
    assert "runs/smollm2 is on this machine only" in message
    assert f"--study {tmp_path}/study.py: name a file of the clone" in message


@pytest.mark.parametrize(("status", "message"), [(3, "it does not fit"), (1, "preflight failed")])
def test_chips_are_asked_for_after_the_study_was_planned_for_them(
    stand_ins, monkeypatch, status, message
):
    commands = []

    def run_program(command):
        commands.append(command[3:])
        return subprocess.CompletedProcess(command, status)

    monkeypatch.setattr(programs, "run_program", run_program)
    stand_ins.add("kubectl")
    assert message in run(*launching.GKE, *CHIPS[:-1]) and not stand_ins.calls()
    (command,) = commands
    assert command[:3] == ["study", "plan", "experiments/methods"]
    assert {"v5e:2x4", "gs://made/run-1", "2"} <= set(command)


@pytest.mark.parametrize(("end", "status"), [("Complete", 0), ("Failed", 1)])
def test_the_indexed_job_is_applied_and_looked_at_until_its_end(stand_ins, capfd, end, status):
    def answer(*conditions, **counts):
        content = [{"type": each, "status": "True"} for each in conditions]
        return {"says": json.dumps({"status": {"conditions": content, **counts}})}

    answers = answer("Failed"), answer(), answer(succeeded=1, active=1), answer(end)
    stand_ins.add("kubectl", (["get"], *answers), reads=True)
    assert run(*launching.GKE, *CHIPS, "--queue", "team") == status
    calls = stand_ins.calls()
    assert [call[1] for call in calls] == ["get", "delete", "apply", "get", "get", "get"]
    assert calls[1][-1] == "job/run-1" and "kind: Job\n" in calls[2][-1]
    output = capfd.readouterr().out
    assert "1 of 2 shares are done, 1 run" in output and f"has ended: {end}" in output


def test_every_share_has_a_tpu_vm_of_its_own_which_starts_again_by_itself(stand_ins):
    active = {"says": json.dumps({"state": {"state": "ACTIVE"}})}
    rules = [(["describe", f"run-1-{number}"], ABSENT, active) for number in range(2)]
    statuses = ({"says": "graft-status 75\n"},) * 4  # believed after as many looks
    rules += [
        (["run-1-0", "remote.py status"], {"says": "graft-status 0\n"}),
        (["run-1-1", "remote.py status"], *statuses, *statuses[:1], {"says": "graft-status 0\n"}),
    ]
    stand_ins.add("gcloud", *rules)
    assert run(*launching.TPU_VM, *CHIPS, "--spot") == 0
    calls = stand_ins.calls()
    for number, starts in enumerate((1, 2)):
        own = [call for call in calls if f"run-1-{number}" in call]
        lines = [call[-1] for call in own if "remote.py start" in call[-1]]
        assert len(lines) == starts
        assert all(f"--folder gs://made/run-1 --share {number}/2" in line for line in lines)
        assert [call[4] for call in own].count("create") == 1 and own[-1][4] == "delete"


def test_a_share_that_fails_leaves_the_others_alone(stand_ins, capfd):
    active = {"says": json.dumps({"state": {"state": "ACTIVE"}})}
    quota = {"complains": "quota exceeded", "status": 1}
    stand_ins.add(
        "gcloud",
        (["create", "run-1-0"], quota),
        *[(["describe", f"run-1-{number}"], ABSENT, active) for number in range(2)],
        (["remote.py status"], {"says": "graft-status 0\n"}),
    )
    assert run(*launching.TPU_VM, *CHIPS) == 1
    assert "run-1-0: gcloud compute tpus" in capfd.readouterr().out
    assert any("remote.py start" in call[-1] for call in stand_ins.calls() if "run-1-1" in call)


@pytest.mark.parametrize("target", [(*launching.TPU_VM, *CHIPS), (*launching.GKE, *CHIPS)])
def test_delete_ends_all_shares(stand_ins, target):
    for name in ("gcloud", "kubectl"):
        stand_ins.add(name)
    assert run(*target, "--delete") == 0
    names = {word for call in stand_ins.calls() for word in call if "run-1" in word}
    assert names == ({"run-1-0", "run-1-1"} if "tpu-vm" in target else {"job/run-1"})


def test_the_array_is_submitted_with_a_share_an_element(stand_ins, capfd):
    stand_ins.add("sbatch", ([], {"says": "4711\n"}), reads=True)
    assert run(*launching.SLURM, "--gpus-per-node", "0", "--sbatch=--account=lab") == 0
    (call,) = stand_ins.calls()
    assert "#SBATCH --array=0-1\n" in call[-1] and "--gpus-per-node" not in call[-1]
    assert "#SBATCH --account=lab\n" in call[-1]
    assert "--folder '/shared/run 1'" in capfd.readouterr().out
    for flags in ((), ("--gpus-per-node", "4")):
        script = script_of(job(study="experiments/a b;c"), *flags)
        assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0
        assert "'experiments/a b;c'" in script
        assert f"--gpus-per-node={flags[-1] if flags else 1}" in script


@pytest.mark.parametrize(("status", "is_requeued"), [(0, False), (1, False), (75, True)])
def test_an_element_that_was_stopped_is_queued_again_and_not_the_whole_array(
    stand_ins, monkeypatch, status, is_requeued
):
    stand_ins.add("srun", ([], {"status": status}))
    stand_ins.add("scontrol")
    for name, value in {"JOB_ID": "4711", "ARRAY_JOB_ID": "4711", "ARRAY_TASK_ID": "1"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert subprocess.run(["bash", "-c", script_of(job())]).returncode == status
    calls = stand_ins.calls()
    assert calls[0][-2:] == ["--share", "1/2"] and "/shared/run 1" in calls[0]
    assert (calls[1:] == [["scontrol", "requeue", "4711_1"]]) == is_requeued


@pytest.mark.heavy
def test_an_array_runs_each_trial_once_and_goes_on_after_a_preemption(world, stand_ins, tmp_path):
    home, folder = tmp_path / "rates", tmp_path / "shared" / "rates"
    home.mkdir()
    config = tiny_run.config_file(home, world.tuning(80, evaluate_split="heldout"))
    (home / "study.py").write_text(
        "from research.studies import Form, Stage, Study\n\n\ndef get_study():\n"
        "    forms = {f'r{n}': Form({'learning_rate': n / 1000}) for n in (1, 3, 10)}\n"
        "    stages = (Stage('s', (0, 1)),)\n"
        f"    return Study('', '', '', {str(config)!r}, forms=forms, stages=stages)\n"
    )
    srun = stand_ins.folder / "srun"
    srun.write_text('#!/bin/bash\nshift\nexec "$@"\n')
    srun.chmod(0o755)
    stand_ins.add("scontrol")
    script = script_of(job(home, str(folder)))

    def start(element):
        variables = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": str(element)}
        return subprocess.Popen(
            ["bash", "-c", script],
            env=os.environ | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def python_of(process):
        line = ["ps", "-o", "pid=", "--ppid", str(process.pid)]
        return int(subprocess.run(line, capture_output=True, text=True, check=True).stdout)

    first = start(0)
    tiny_run.wait_for(first, lambda: any(map(tiny_run.lines, folder.glob("trials/*/run"))))
    os.kill(python_of(first), 15)
    output = first.communicate(timeout=200)[0]
    assert first.returncode == EXIT_RESTART and "stopped and saved" in output, output
    assert stand_ins.calls() == [["scontrol", "requeue", "7_0"]]
    elements = [start(number) for number in range(2)]
    outputs = [element.communicate(timeout=400)[0] for element in elements]
    assert [element.returncode for element in elements] == [0, 0], outputs
    rows = Ledger(folder).read()
    assert len(rows) == 6 == len(list((folder / "rows").iterdir()))
    logs = [(folder / "trials" / address / "log.txt").read_text() for address in rows]
    starts = sorted(re.findall(r"start      (.*)", log) for log in logs)
    assert sum(len(each) > 1 for each in starts) <= 1  # the one that was stopped
    assert all(len(each) <= 2 for each in starts), starts
    # both elements took part
    counts = [len(re.findall(r"^s: r\d+ seed=\d: heldout_loss", out, re.M)) for out in outputs]
    assert sum(counts) in (5, 6) and all(counts), outputs
