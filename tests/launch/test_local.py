"""graft launch --target local, for real."""

import argparse
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from research.checkpoints.checkpointer import open_checkpoint
from research.experiment import CheckpointConfig
from research.launch import local
from research.launch.job import Job, Shell, outcome, should_restart
from research.runtime import children
from tests.helpers import tiny_run

ROOT = tiny_run.ROOT


@pytest.mark.parametrize(
    ("statuses", "status"),
    [
        ([0, 0], 0),
        ([75, 75], 75),
        ([-9, 75], 75),
        ([-9, -6], 75),
        ([-15, 1], 75),  # one was taken away, whatever the other says
        ([137, 1], 75),
        ([1, 1], 1),
        ([2, 75], 2),
        ([1, 75], 1),  # the others noticed, or JAX did for them
        ([1, -6], 1),
        ([127], 127),
        ([0, 134], 75),
    ],
)
def test_what_is_repeated(statuses, status):
    assert outcome(statuses) == status and should_restart(statuses) == (status == 75)


def test_a_sign_of_life_is_a_change_of_the_file_whatever_the_clocks_say(tmp_path, monkeypatch):
    """Of a child whose clock is set by 400 days, forward or back."""
    file, seconds, days = tmp_path / "beat", iter(range(100)), 86400 * 400
    monkeypatch.setattr(children.time, "monotonic", lambda: float(next(seconds)))
    monkeypatch.setattr(children.time, "time", lambda: 1 / 0)
    heartbeat = children.Heartbeat(file)
    for mtime in (1e9, 1e9 + days, 1e9 + 1, 1e9 - days):
        file.touch()
        os.utime(file, (mtime, mtime))
        assert heartbeat.look() == 0.0
        assert heartbeat.look() == 1.0 and heartbeat.look() == 2.0


class Program(Job):
    """Ends with these statuses, one a start, and writes down its variables."""

    def command(self, python="python", *flags):
        text = (
            "import os, signal, sys, time; from pathlib import Path\n"
            "calls = Path(sys.argv[1]); calls.touch(); n = len(calls.read_text().split())\n"
            "calls.open('a').write(os.environ['FLAG'] + '\\n')\n"
            "status = int(sys.argv[2:][n])\n"
            "if status == -signal.SIGSTOP:\n"
            "    from research.runtime import children\n"
            "    children.follow_parent(); time.sleep(0.5)\n"
            "os.kill(os.getpid(), -status) if status < 0 else sys.exit(status)"
        )
        return [python, "-c", text, self.workdir, *self.overrides]


def attempts(folder, *statuses, restarts=10):
    """The launcher's exit status, and how often it started the program."""
    calls, overrides = str(folder / "calls"), tuple(map(str, statuses))
    job = Program("x", "", calls, overrides, environment={"FLAG": "given"}, restarts=restarts)
    status = local.start(
        job, argparse.Namespace(processes=1, heartbeat_timeout=1.0), Shell(dry_run=False)
    )
    variables = (folder / "calls").read_text().split()
    assert set(variables) == {"given"}
    return status, len(variables)


def test_a_stopped_run_is_started_again_an_error_is_not_and_restarts_end(tmp_path, capfd):
    for number, (statuses, restarts, expected) in enumerate(
        [
            ([75, -15, -9, 0], 10, (0, 4)),
            ([75, 1, 0], 10, (1, 2)),
            ([75, 75, 75, 0], 2, (75, 3)),
        ]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        assert attempts(folder, *statuses, restarts=restarts) == expected
    assert "2 restarts are used up" in capfd.readouterr().out


def test_a_process_that_hangs_is_killed_and_the_run_started_again(tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert attempts(tmp_path, -signal.SIGSTOP, 0) == (0, 2)
    output = capfd.readouterr().out
    assert "process 0 gave no sign of life for 1 s: killed" in output
    assert "it ended with [-9]; started again" in output


def test_a_process_that_outlives_a_failed_one_is_killed(capfd):
    text = "import os, sys, time; time.sleep(600) if os.environ['N'] == '0' else sys.exit(75)"
    environments = [{"N": "0"}, {"N": "1"}]
    command = [sys.executable, "-c", text]
    assert local._run_once(command, environments, 0.5) == ([-9, 75], False)
    assert "process 0 has not ended" in capfd.readouterr().out


def launch(folder, experiment):
    """The launcher as a process, with two that share 8 devices as one run."""
    file = tiny_run.config_file(folder, experiment)
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=4")
    arguments = ["--target", "local", "--processes", "2", "--config", str(file)]
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "research.cli",
            "launch",
            *arguments,
            "--workdir",
            str(folder / "run"),
        ],
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": flags},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture(scope="module")
def experiment(world):
    return world.experiment(12, checkpoint=CheckpointConfig(every=4, keep_last=9))


@pytest.fixture(scope="module")
def whole(experiment, tmp_path_factory):
    """The run that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    process = launch(folder, experiment)
    output = process.communicate(timeout=240)[0]
    assert process.returncode == 0, output
    return folder / "run"


@pytest.mark.heavy
@pytest.mark.parametrize(("number", "index"), [(signal.SIGKILL, 1), (signal.SIGTERM, 1)])
def test_a_run_whose_process_gets_a_signal_starts_again_and_ends_as_if_it_had_not(
    experiment, whole, tmp_path, number, index
):
    launcher = launch(tmp_path, experiment)
    run = tmp_path / "run"
    tiny_run.wait_for(launcher, lambda: len(tiny_run.lines(run)) >= 5)
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    os.kill(int(children[index]), number)
    output = launcher.communicate(timeout=240)[0]
    assert launcher.returncode == 0 and "started again" in output, output
    if number == signal.SIGTERM:
        assert "it ended with [75, 75]; started again" in output, output
    assert open_checkpoint(run).step == 12
    assert tiny_run.content(run, 12) == tiny_run.content(whole, 12)
