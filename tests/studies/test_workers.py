"""--workers auto: as many processes as cores and memory hold, by what a trial was seen to take."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from research.commands import study
from research.runtime import children
from research.runtime.memory import GIB
from research.studies import workers
from research.studies.ledger import Ledger


def row(size, device="cpu", number=0):
    own = {"address": f"{number:020x}", "inputs": "i", "code": "c", "status": "finished"}
    return own | {"device": device, "process_bytes": int(size * GIB)}


@pytest.mark.parametrize(
    ("rows", "free", "count"),
    [
        ([row(1.0), row(2.0, number=1)], 10, 4),  # 9 of 10 GiB, and 2 each
        ([row(0.5)], 100, 6),  # the cores
        ([row(20.0)], 10, 1),
        ([row(1.0, device="TPU v5e")], 100, 1),
    ],
)
def test_the_number_is_what_cores_and_memory_hold(tmp_path, monkeypatch, rows, free, count):
    monkeypatch.setattr(workers.os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    monkeypatch.setattr(workers.memory, "available_on_host", lambda: free * GIB)
    monkeypatch.setattr(workers, "run_program", None)  # nothing is to be measured
    for each in rows:
        Ledger(tmp_path).write(each)
    assert workers.fitting_count(["study", "run"], tmp_path) == count


def test_where_nothing_has_run_the_first_trial_is_measured_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(workers.os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    monkeypatch.setattr(workers.memory, "available_on_host", lambda: 10 * GIB)
    lines = []

    def run_program(line):
        lines.append(line[3:])
        Ledger(tmp_path).write(row(3.0))

    monkeypatch.setattr(workers, "run_program", run_program)
    assert workers.fitting_count(["study", "run", "x"], tmp_path) == 3
    assert lines == [["study", "run", "x", "--trials", "1"]]
    assert study._worker_count("auto") == workers.AUTO and study._worker_count("3") == 3


def test_a_worker_that_is_stopped_is_killed_and_named(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(children, "SILENCE_LIMIT", 1.5)
    monkeypatch.setattr(children, "BEAT", 0.3)
    program = "import time; from research.runtime import children; children.BEAT = 0.1\n"
    program += "children.follow_parent(); time.sleep(60)"
    processes = []
    with workers._killing_silent(processes, tmp_path):
        for number in (1, 2):
            environment = children.child_environment(heartbeat=tmp_path / str(number))
            processes.append(subprocess.Popen([sys.executable, "-c", program], env=environment))
        while len(list(tmp_path.iterdir())) < 2:
            threading.Event().wait(0.05)
        os.kill(processes[1].pid, signal.SIGSTOP)
        assert processes[1].wait(timeout=60) == -signal.SIGKILL
        assert processes[0].poll() is None
        while not (printed := capfd.readouterr().err):
            threading.Event().wait(0.05)
    processes[0].kill()
    processes[0].wait()
    assert f"worker 2 (process {processes[1].pid}) gave no sign of life for " in printed
