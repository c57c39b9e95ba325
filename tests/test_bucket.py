"""A whole run in a bucket, against an emulator of Google Cloud Storage: data, checkpoints, kill,
resume, export, and what fails. Needs `tools/setup services`."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from research import generate, runs
from research.experiment import CheckpointConfig
from research.hosts import STOPPED
from research.methods import LoRA
from research.metrics import read_metrics
from research.paths import absolute
from research.train import train
from tests import tiny_run
from tools import adapters

pytest.importorskip("gcp_storage_emulator", reason="tools/setup services")
pytestmark = pytest.mark.heavy
ENDLESS = 1_000_000
SERVER = (
    "import sys; from gcp_storage_emulator.server import create_server\n"
    "create_server('127.0.0.1', int(sys.argv[1]), in_memory=False,"
    " data_dir=sys.argv[2], default_bucket=sys.argv[3] or None).run()"
)


class Emulator:
    """A server in a process of its own."""

    def __init__(self, folder):
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self, bucket="made"):
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(self.port), str(self.folder), bucket],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        tiny_run.wait_for(self.process, self._answers)

    def _answers(self):
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", self.port)) == 0


@pytest.fixture(scope="module")
def emulator(tmp_path_factory):
    """The server, which this process and those that it starts take for Google's."""
    server = Emulator(tmp_path_factory.mktemp("bucket") / "data")
    before = dict(os.environ)
    for name in ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL"):
        os.environ[name] = server.address
    os.environ |= {
        "CLOUD_STORAGE_EMULATOR_ENDPOINT": server.address,
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "made",
        "NO_GCE_CHECK": "true",
        "GCE_METADATA_ROOT": "127.0.0.1:1",
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
    }
    yield server
    server.process.kill()
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def remote(world, emulator):
    """The world's text and tokenizer in the bucket, and an experiment on them."""
    for name in ("prose-train.jsonl", "prose-heldout.jsonl", "tokenizer.json"):
        (absolute("gs://made/data") / name).write_bytes((world.folder / name).read_bytes())
    local = world.experiment(20)
    source = type(local.data.sources[0])("prose", "jsonl", "gs://made/data/prose-{split}.jsonl")
    settings = {
        "tokenizer": "gs://made/data/tokenizer.json",
        "data": world.data(sources=(source,)),
        "checkpoint": CheckpointConfig(every=5),
        "evaluate_split": "heldout",
    }
    return lambda steps, **changes: world.experiment(steps, **settings | changes)


def finish(process):
    output = process.communicate(timeout=200)[0]
    return process.returncode, output


def test_a_run_in_a_bucket_is_the_run_on_a_disk_after_a_kill_and_a_signal(remote, world, tmp_path):
    where, folder = "gs://made/run", absolute("gs://made/run")
    steps = 20
    process = tiny_run.start(remote(steps), tmp_path, where)
    tiny_run.wait_for(
        process, lambda: (folder / "checkpoints" / "5" / "commit_success.txt").exists()
    )
    process.kill()
    process.communicate()
    process = tiny_run.start(remote(steps), tmp_path, where)
    code, output = finish(process)
    assert code == 0 and "start      step " in output, output
    train(world.experiment(steps, evaluate_split="heldout"), tmp_path / "disk")
    assert tiny_run.content(where, steps) == tiny_run.content(tmp_path / "disk", steps)
    ours, theirs = (read_metrics(place / "metrics.jsonl") for place in (folder, tmp_path / "disk"))
    assert ours == theirs
    assert json.loads((folder / "summary.json").read_text())["finished"]
    assert any((folder / "tensorboard").iterdir())

    # others read it there: an export, and an evaluation through transformers' own format
    out = tmp_path / "export"
    program = "import sys; from tools import convert; convert.main(sys.argv[1:])"
    line = [sys.executable, "-c", program, "export", "--from", where, "--out", str(out)]
    ended = subprocess.run(line, cwd=tiny_run.ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    from safetensors.numpy import load_file

    tensors = load_file(out / "model.safetensors")
    assert all(np.isfinite(tensor).all() for tensor in tensors.values()) and tensors


def test_adapters_in_a_bucket_are_tuned_listed_added_merged_and_put_side_by_side(
    remote, tmp_path, capsys
):
    train(remote(4), "gs://made/base")
    start = {"model": None, "tokenizer": None, "init_from": "gs://made/base"}
    for seed, name in enumerate(("law", "style")):
        tuned = remote(2, **start, method=LoRA(rank=2), seed=seed)
        train(tuned, f"gs://made/tuned/{name}")
    capsys.readouterr()
    adapters.main(["list", "gs://made/tuned"])
    listed = capsys.readouterr().out
    assert "gs://made/tuned/law" in listed and "gs://made/tuned/style" in listed
    assert "gone" not in listed
    law, style = "gs://made/tuned/law", "gs://made/tuned/style"
    adapters.main(["merge", "--from", law, "--out", "gs://made/whole"])
    adapters.main(
        ["add", "--from", f"0.5={law}", "--from", f"0.5={style}", "--out", "gs://made/sum"]
    )
    adapters.main(
        ["bank", "--from", f"law={law}", "--from", f"style={style}", "--out", "gs://made/bank"]
    )
    certificate = json.loads((absolute("gs://made/whole") / "certificate.json").read_text())
    assert certificate["largest_difference"] < 1e-4 * certificate["largest_output"]
    for made in ("whole", "sum", "bank"):
        assert runs.open_run(f"gs://made/{made}").checksums()
    generate.main(["--run", "gs://made/bank", "--prompt", "red", "--tokens", "2"])
    assert "style" in capsys.readouterr().out


def test_a_signal_saves_in_the_bucket(remote, tmp_path):
    where, folder = "gs://made/stopped", absolute("gs://made/stopped")
    process = tiny_run.start(remote(ENDLESS), tmp_path, where)
    tiny_run.wait_for(
        process, lambda: (folder / "checkpoints" / "5" / "commit_success.txt").exists()
    )
    process.send_signal(signal.SIGTERM)
    code, output = finish(process)
    assert code == STOPPED and "stopped by a signal at step" in output, output
    rows = read_metrics(folder / "metrics.jsonl")
    assert (folder / "checkpoints" / str(rows[-1]["step"]) / "commit_success.txt").exists()


def test_a_bucket_that_is_not_there_is_named_before_compute(remote, tmp_path):
    code, output = finish(tiny_run.start(remote(5), tmp_path, "gs://nowhere/run"))
    assert code == 1 and "gs://nowhere/run" in output and "step 1/" not in output, output
    assert "Traceback" not in output


def test_a_run_outlasts_storage_that_is_away_and_says_when_it_is_gone(emulator, remote, tmp_path):
    where, folder = "gs://made/lost", absolute("gs://made/lost")
    saved = lambda: len(list((folder / "checkpoints").glob("*/commit_success.txt")))  # noqa: E731
    newest = lambda: max(int(p.parent.name) for p in (folder / "checkpoints").glob("*/commit*"))  # noqa: E731
    process = tiny_run.start(remote(ENDLESS), tmp_path, where)
    tiny_run.wait_for(process, saved)
    emulator.process.kill()
    time.sleep(3)
    emulator.start()
    before = newest()
    tiny_run.wait_for(process, lambda: newest() > before)
    emulator.process.kill()
    shutil.rmtree(emulator.folder)
    emulator.start(bucket="")
    code, output = finish(process)
    assert code == 1 and "error: could not save step" in output, output
