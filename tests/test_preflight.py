"""The real TPU compiler, for devices that are not there; runs in .venv/preflight."""

import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

pytest.importorskip("libtpu", reason="tools/setup preflight")
from research import accelerators, preflight  # noqa: E402
from research import config as door  # noqa: E402
from research.experiment import Experiment  # noqa: E402

pytestmark = pytest.mark.heavy
ROOT = Path(__file__).resolve().parent.parent
LLAMA = str(ROOT / "configs/pretrain/llama3_8b.py")
SMALL = [
    *("model.width=512", "model.layers=4", "model.hidden=1024", "model.heads=4"),
    *("model.key_heads=2", "model.vocabulary=8192", "data.sequence_length=1024"),
]
LORA = ['method={"kind": "lora", "rank": 8}', 'model.storage=[["layers/.*", "nf4"]]']


@pytest.fixture(scope="module", autouse=True)
def compiler():
    preflight.prepare_environment()


CASES = {
    "v5e, fsdp and tensor": ("v5e:2x2", 1, ["mesh.fsdp=2", "mesh.tensor=2"]),
    "v5p, sequence": ("v5p:2x2x1", 1, ["mesh.sequence=2", "data.batch_size=2"]),
    "v6e, two slices": ("v6e:2x2", 2, ["mesh.data=2"]),
    "QLoRA on one chip": ("v5e:1x1", 1, LORA),
    "chunks of the MLP, the rest with the host": (
        "v5e:2x2",
        1,
        ["mesh.fsdp=4", "model.mlp_chunks=2", "model.remat=offload", 'offload=[".*/(mu|nu)"]'],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_step_compiles_with_the_kernel_and_holds_what_its_sharding_says(case):
    name, slices, overrides = CASES[case]
    experiment = door.load(Experiment, LLAMA, [*SMALL, "data.batch_size=8", *overrides])
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # a kernel that refuses says so
        report = preflight.examine(experiment, accelerators.topology(name, slices))
    assert report["fits"] and report["temp_gib"] > 0
    held = sum(report[f"{part}_gib"] for part in ("weights", "adapters", "optimizer"))
    assert (report["host_gib"] > 0) == ("with the host" in case)
    # the batch and the run's numbers besides; small arrays are padded
    assert held <= report["argument_gib"] <= 1.1 * held + 0.01


def test_what_does_not_fit_is_said_with_what_would(tmp_path):
    big = ["data.batch_size=512", "model.remat=none", "model.hidden=16384", "model.layers=8"]
    flags = [f"--config.{override}" for override in [*SMALL, *big]]
    line = [sys.executable, "tools/preflight.py", "--config", LLAMA, "--topology", "v5e:2x2"]
    out = tmp_path / "report.json"
    made = subprocess.run(
        [*line, *flags, "--json", str(out), "--tries", "4"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=900,
    )
    assert made.returncode == 3, made.stdout + made.stderr
    report = json.loads(out.read_text())
    assert not report["fits"] and report["peak_gib"] > report["limit_gib"] > 15
    assert made.stdout.startswith("NO") and "looking for the nearest" in made.stdout
    assert {"argument_gib", "temp_gib"} <= set(report["alternatives"][0])
    assert "--config.compute.remat=full" in made.stdout


def test_what_does_not_fit_is_not_launched():
    big = ["data.batch_size=512", "model.remat=none", "model.hidden=16384"]
    flags = [f"--config.{override}" for override in [*SMALL, *big]]
    target = ["--target", "gke", "--image", "graft:1", "--workdir", "gs://made/big"]
    line = [sys.executable, "tools/launch.py", "--config", LLAMA, "--topology", "v5e:2x2"]
    made = subprocess.run([*line, *target, *flags], capture_output=True, text=True, cwd=ROOT)
    assert made.returncode == 1 and "it does not fit" in made.stderr, made.stdout + made.stderr
    assert "$ kubectl" not in made.stdout
