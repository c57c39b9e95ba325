"""--workers auto: as many processes as cores and memory hold, by what a trial was seen to take."""

import pytest

from research.commands import study
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
