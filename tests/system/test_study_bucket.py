"""A study in a bucket, against an emulator of Google Cloud Storage: several machines at once, one
killed and one preempted. Needs `tools/setup services`."""

import signal
import subprocess
import sys
import time

import pytest

from research.experiment import CheckpointConfig
from research.runtime import storage
from research.runtime.distributed import EXIT_RESTART
from research.runtime.storage import absolute
from research.studies.claims import Claims
from research.studies.ledger import Ledger
from tests.helpers import tiny_run
from tests.helpers.faulty_storage import Faults, serve

pytest.importorskip("gcp_storage_emulator", reason="tools/setup services")
pytestmark = pytest.mark.heavy
FOLDER = "gs://made/studies/rates"
# `graft` with less patience: the signs of life are 5 s apart
PROGRAM = "from research import cli\nfrom research.studies import claims\nclaims.PATIENCE = 15.0\n"


@pytest.fixture
def faults(tmp_path):
    with serve(tmp_path / "bucket") as server, Faults(server) as proxy:
        yield proxy


@pytest.fixture
def config(world, tmp_path):
    settings = {"checkpoint": CheckpointConfig(every=5), "evaluate_split": "heldout"}
    return str(tiny_run.config_file(tmp_path, world.experiment(40, **settings)))


def start(config, folder, *more):
    line = ["sweep", "--config", config, "--folder", str(folder), "--seeds", "2", *more]
    line += ["--axis", "learning_rate=1e-3,1e-2"]
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", f"{PROGRAM}cli.main({line!r})"],
        cwd=tiny_run.ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def saved_elsewhere(address):
    time.sleep(0.2)  # the emulator answers one at a time
    folder = absolute(FOLDER) / "trials"
    others = set(storage.names_in(folder)) - {address}
    marker = "run/checkpoints/5/commit_success.txt"
    return any((folder / other / marker).exists() for other in others)


def losses(folder):
    return {address: row["heldout_loss"] for address, row in Ledger(folder).read().items()}


def test_machines_that_come_and_go_end_in_the_ledger_of_one_on_a_disk(config, faults, tmp_path):
    saves = r"POST .*trials/\w+/run/checkpoints/10/commit_success"
    rule = faults.hold(saves)
    first = start(config, FOLDER, "--share", "0/2")
    tiny_run.wait_for(first, lambda: rule.hits)
    first.kill()
    first.communicate()
    (dead_address,) = Claims(absolute(FOLDER)).holders()
    faults.clear()

    second = start(config, FOLDER, "--share", "1/2")
    tiny_run.wait_for(second, lambda: saved_elsewhere(dead_address))
    second.send_signal(signal.SIGTERM)
    output = second.communicate(timeout=200)[0]
    assert second.returncode == EXIT_RESTART and "stopped and saved" in output, output
    # what was stopped is free at once, what was killed not yet
    assert set(Claims(absolute(FOLDER)).holders()) == {dead_address}

    pair = [start(config, FOLDER, "--share", f"{number}/2") for number in range(2)]
    outputs = [process.communicate(timeout=400)[0] for process in pair]
    assert [process.returncode for process in pair] == [0, 0], outputs
    alone = start(config, tmp_path / "disk")
    assert alone.wait() == 0, alone.communicate()[0]
    expected = losses(tmp_path / "disk")
    assert len(expected) == 4 and losses(FOLDER) == expected
    # each once: as many rows as trials, no claims left, and what was begun has gone on
    assert len(storage.names_in(f"{FOLDER}/rows")) == 4
    assert storage.names_in(f"{FOLDER}/running") == []
    log = (absolute(FOLDER) / "trials" / dead_address / "log.txt").read_text()
    assert "start      step 5\n" in log
