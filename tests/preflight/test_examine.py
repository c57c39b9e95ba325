"""The real TPU compiler, for devices that are not there; runs in .venv/preflight."""

import dataclasses
import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

pytest.importorskip("libtpu", reason="tools/setup preflight")
from configs import presets  # noqa: E402
from research.config import cli, schema  # noqa: E402
from research.experiment import Experiment  # noqa: E402
from research.phases.phased import Phase, PhasedExperiment  # noqa: E402
from research.preflight import examine, together  # noqa: E402
from research.runtime import accelerators
from tests.helpers import tiny_run  # noqa: E402

pytestmark = pytest.mark.heavy
ROOT = Path(__file__).resolve().parents[2]
LLAMA = str(ROOT / "configs/pretrain/llama3_8b.py")
SMALL = [
    *("model.width=512", "model.layers=4", "model.mlp_width=1024", "model.heads=4"),
    *("model.kv_heads=2", "model.vocabulary=8192", "data.sequence_length=1024"),
]
LORA = ['method={"kind": "lora", "rank": 8}', 'model.storage=[["layers/.*", "nf4"]]']


@pytest.fixture(scope="module", autouse=True)
def compiler():
    examine.prepare_environment()


CASES = {
    "v5e, fsdp and tensor": ("v5e:2x2", 1, ["mesh.fsdp=2", "mesh.tensor=2"]),
    "v5p, sequence": ("v5p:2x2x1", 1, ["mesh.sequence=2", "data.batch_size=2"]),
    "v6e, two slices": ("v6e:2x2", 2, []),
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
    experiment = cli.load(Experiment, LLAMA, [*SMALL, "data.batch_size=8", *overrides])
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # a kernel that refuses says so
        report = examine.examine(experiment, accelerators.get_topology(name, slices))
    memory, estimate = report.memory, report.estimate
    assert memory.fits and memory.temp_gib > 0
    resident = estimate.weights_gib + estimate.adapters_gib + estimate.optimizer_gib
    assert (estimate.host_gib > 0) == ("with the host" in case)
    # the batch and the run's numbers besides; small arrays are padded
    assert resident <= memory.argument_gib <= 1.1 * resident + 0.01


def test_trials_on_one_base_fit_beside_it():
    """Each device has the base once, and its share of the trials."""
    experiment = cli.load(Experiment, LLAMA, [*SMALL, "data.batch_size=1", *LORA])
    experiment = dataclasses.replace(experiment, init_from="nowhere", tokenizer=None)
    for name, devices in (("v5e:1x1", 1), ("v5e:2x2", 4)):
        report = together.examine_together(experiment, accelerators.get_topology(name), 8)
        assert report.fits and report.devices == devices
        resident = report.base_gib + 8 // devices * report.own_gib
        assert resident <= report.argument_gib <= 1.1 * resident + 0.01
        assert 1 <= report.gain < 8 and "8 trials" in report.describe()


KEYS = {"argument_gib", "temp_gib", "fits", "model_flops"}


def run_preflight(tmp_path, *flags, config=()):
    """Exit status, output and JSON of graft preflight with a small model."""
    out = tmp_path / "report.json"
    line = [
        sys.executable,
        "-m",
        "research.cli",
        "preflight",
        "--config",
        LLAMA,
        *flags,
        "--json",
        str(out),
    ]
    line += [f"--config.{override}" for override in [*SMALL, *config]]
    process = subprocess.run(line, capture_output=True, text=True, cwd=ROOT, timeout=1200)
    assert out.exists(), process.stdout + process.stderr
    return process.returncode, process.stdout, json.loads(out.read_text())


def test_what_does_not_fit_is_said_with_what_would(tmp_path):
    big = ["data.batch_size=512", "model.remat=none", "model.mlp_width=16384", "model.layers=8"]
    flags = ["--topology", "v5e:2x2", "--tries", "4"]
    status, text, report = run_preflight(tmp_path, *flags, config=big)
    assert status == 3
    assert not report["fits"] and report["peak_gib"] > report["limit_gib"] > 15
    assert report["argument_gib"] + report["temp_gib"] == pytest.approx(report["peak_gib"])
    assert report["model_flops"] > 0
    resident = sum(report[f"{part}_gib"] for part in ("weights", "adapters", "optimizer"))
    assert resident < report["argument_gib"] < resident + 0.1
    assert text.startswith("NO") and "too many" in text and "looking for the nearest" in text
    assert {"argument_gib", "temp_gib"} <= set(report["alternatives"][0])
    assert "--config.compute.remat=full" in text


def test_the_same_config_lies_on_two_slices_and_rows_that_do_not_are_told_what_would(tmp_path):
    flags = ["--topology", "v5e:2x2", "--slices", "2", "--tries", "1"]
    status, text, report = run_preflight(tmp_path, *flags, config=["data.batch_size=12"])
    assert status == 3 and not report["fits"] and report["model_flops"] > 0
    assert report["argument_gib"] is report["temp_gib"] is None
    assert text.startswith("NO         2 x v5e:2x2, 8 chips: a micro-batch of 12 rows does not")
    (alternative,) = report["alternatives"]
    assert (
        alternative["changes"] == ["data.batch_size=8"]
        and alternative["fits"]
        and alternative["slices"] == 2
    )
    assert alternative["mesh"] == {"data": 2, "fsdp": 4, "sequence": 1, "tensor": 1}
    assert alternative["model_flops"] == pytest.approx(report["model_flops"] * 8 / 12)


def test_rows_a_chip_are_whole_rows_a_device_and_prices_are_those_given(tmp_path):
    prices = {"date": "today", "currency": "Swiss francs", "chip_hour": {"tpu7x": 1e6}}
    (tmp_path / "prices.json").write_text(json.dumps(prices))
    flags = ["--topology", "tpu7x:2x2x1", "--sequences-per-chip", "1"]
    status, text, report = run_preflight(
        tmp_path, *flags, "--prices", str(tmp_path / "prices.json")
    )
    assert status == 0 and report["fits"] and all(report[key] for key in KEYS)
    assert (report["chips"], report["batch_size"], report["rows_per_device"]) == (4, 8, 1)
    assert report["money"] == pytest.approx(1e6 * report["chip_hours"])
    assert f"{report['money']:,.0f} Swiss francs" in text and "prices of today" in text


def test_every_version_compiles_with_its_flags_and_what_is_refused_says_why(tmp_path):
    """`all` is a process a version: libtpu reads flags once, and ends at one that it does not
    know."""
    flags = ["--topology", "all", "--sequences-per-chip", "1"]
    # TPU7x has two devices a chip
    status, text, reports = run_preflight(tmp_path, *flags, config=["mesh.fsdp=64"])
    assert status == 3
    assert [report["topology"] for report in reports] == list(accelerators.EXAMPLE_TOPOLOGIES)
    *results, refusal = reports
    for report in results:
        assert all(report[key] for key in KEYS) and report["batch_size"] == 64
        assert report["flags"] == presets.flags(report["topology"]).split() != []
    assert set(refusal) >= KEYS and not refusal["fits"] and "128 devices" in refusal["why"]
    table = text[text.index("| topology") :].splitlines()
    assert len(table) == 7 and "does not fit 128 devices" in table[-1] and "cost (US do" in table[0]


def test_what_does_not_fit_is_not_launched():
    big = ["data.batch_size=512", "model.remat=none", "model.mlp_width=16384"]
    there = ["tokenizer=gs://made/tokenizer.json", "data.sources[0].path=gs://made/web"]
    flags = [f"--config.{override}" for override in [*SMALL, *big, *there]]
    target = ["--target", "gke", "--image", "graft:1", "--workdir", "gs://made/big"]
    config = str(Path(LLAMA).relative_to(ROOT))
    line = [
        sys.executable,
        "-m",
        "research.cli",
        "launch",
        "--config",
        config,
        "--topology",
        "v5e:2x2",
    ]
    process = subprocess.run([*line, *target, *flags], capture_output=True, text=True, cwd=ROOT)
    assert process.returncode == 1 and "it does not fit" in process.stderr, (
        process.stdout + process.stderr
    )
    assert "$ kubectl" not in process.stdout


def test_a_sweep_is_planned_with_what_the_compiler_says_of_every_cell(world, tmp_path):
    config = tiny_run.config_file(tmp_path, world.experiment(40, evaluate_split="heldout"))
    line = ["sweep", "--config", config, "--folder", tmp_path / "sweep", "--dry-run"]
    line += ["--axis", "data.sequence_length=128,256", "--topology", "v5e:2x2"]
    command = [sys.executable, "-W", "ignore", "-m", "research.cli", *map(str, line)]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "the TPU compiler's memory" in output and "peak (GiB)" in output
    assert len([row for row in output.splitlines() if row.startswith("| sequence_length=")]) == 2
    assert "chip-hours" in output and "US dollars (prices of" in output


def test_each_phase_is_examined_and_one_may_be_named(world, tmp_path):
    phases = (
        Phase("short", {"data.sequence_length": 128}),
        Phase("long", {"data.sequence_length": 256}),
    )
    content = schema.to_dict(world.tuning(2)) | {"phases": list(map(schema.to_dict, phases))}
    config = tiny_run.config_file(tmp_path, schema.build(PhasedExperiment, content))
    line = ["preflight", "--config", config, "--topology", "v5e:1x1", "--json", tmp_path / "all"]
    command = [sys.executable, "-W", "ignore", "-m", "research.cli", *map(str, line)]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 0 and "\nphase long\nfits" in process.stdout, process.stderr
    reports = json.loads((tmp_path / "all").read_text())
    assert [reports[name]["sequence_length"] for name in ("short", "long")] == [128, 256]
    one = subprocess.run([*command, "--phase", "lon"], cwd=ROOT, capture_output=True, text=True)
    assert one.returncode == 1 and "no such phase; did you mean long" in one.stderr
