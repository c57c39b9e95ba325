"""A study that is killed again and again ends in the ledger of one that was not."""

import os
import random
import signal
import subprocess
import time

import pytest

from research.studies.ledger import Ledger
from tests.helpers import tiny_run

# 20 have been tried: GRAFT_KILLS=20
KILLS = int(os.environ.get("GRAFT_KILLS", "4"))
OF_A_PROCESS = ("ended", "peak_memory_bytes", "process_bytes")
SEEDS = 1 + KILLS // 10  # so that the last kill too strikes a sweep that is not done
RATES = "1e-4,2e-4,5e-4,1e-3,2e-3,3e-3,5e-3,1e-2,2e-2,3e-2"


def start(config, folder):
    line = ["--config", config, "--folder", folder, "--seeds", SEEDS]
    return subprocess.Popen(
        tiny_run.command("sweep", *line, "--axis", f"learning_rate={RATES}"),
        cwd=tiny_run.ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def progress(folder):
    """The lines that all runs have written so far."""
    files = (folder / "trials").glob("*/run/metrics.jsonl")
    return sum(file.read_bytes().count(b"\n") for file in files)


def rows(folder):
    """What the trials' rows say, but for times and what a process used."""
    return {
        address: {
            name: value
            for name, value in row.items()
            if name not in OF_A_PROCESS and not name.endswith("seconds")
        }
        for address, row in Ledger(folder).read().items()
    }


@pytest.mark.heavy
def test_a_sweep_killed_again_and_again_ends_in_the_same_ledger(world, tmp_path):
    config = tiny_run.config_file(tmp_path, world.tuning(20, evaluate_split="heldout"))
    whole = start(config, tmp_path / "whole")
    output = whole.communicate()[0]
    assert whole.returncode == 0, output
    expected = rows(tmp_path / "whole")
    assert len(expected) == 10 * SEEDS
    for row in expected.values():
        # files of a checkpoint hold random names, compressed, and its path
        row["artifact_bytes"] = pytest.approx(row["artifact_bytes"], abs=100)
    folder, rng, counts = tmp_path / "killed", random.Random(0), []
    for _ in range(KILLS):
        before = progress(folder)
        process = start(config, folder)
        # in the middle of a trial
        tiny_run.wait_for(process, lambda least=before: progress(folder) > least)
        time.sleep(rng.uniform(0, 0.3))
        assert process.poll() is None, process.communicate()[0]
        process.send_signal(signal.SIGKILL)
        process.communicate()
        counts.append(len(rows(folder)))
    assert counts[-1] < len(expected), counts  # every kill struck a sweep that was not done
    last = start(config, folder)
    output = last.communicate()[0]
    assert last.returncode == 0, output
    actual = rows(folder)
    assert actual.keys() == expected.keys()
    for address, row in expected.items():
        ours = actual[address]
        names = row.keys() | ours.keys()
        assert not {n: (ours.get(n), row.get(n)) for n in names if ours.get(n) != row.get(n)}
