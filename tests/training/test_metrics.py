"""Metrics survive kills and resumes; rates, peaks and memory are what a clock and a book say."""

import io
import json
import math
import os
import struct
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.runtime import accelerators
from research.runtime.compilation_cache import enable_compilation_cache
from research.training import metrics

ROOT = Path(__file__).resolve().parents[2]


def report(writer: metrics.MetricsWriter, steps: range) -> None:
    for step in steps:
        writer.write(step, {"train/loss": 1 / (1 + step), "learning_rate": np.float32(step)})
        if step % 3 == 0:
            writer.write(step, {"eval/loss": step, "kind": "law"})


@given(
    killed_at=st.integers(0, 10),
    data=st.data(),
)
def test_resumed_jsonl_equals_uninterrupted(
    killed_at: int, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    resumed_from = data.draw(st.integers(0, killed_at))
    torn = data.draw(st.integers(0, 40))
    whole, cut = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("cut")
    with metrics.MetricsWriter(whole) as writer:
        report(writer, range(10))
    with metrics.MetricsWriter(cut) as writer:
        report(writer, range(killed_at))
    with (cut / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": killed_at, "train/loss": 0.25})[:torn])
    with metrics.MetricsWriter(cut, start_step=resumed_from) as writer:
        report(writer, range(resumed_from, 10))
    assert (cut / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    assert sorted(path.name for path in cut.iterdir()) == ["metrics.jsonl", "tensorboard"]


def test_lines_are_on_disk_at_once_and_nonfinite_is_valid_json(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with metrics.MetricsWriter(tmp_path) as writer:
        writer.write(7, {"loss": jax.numpy.asarray(np.nan), "norm": math.inf, "skipped": True})
        line = path.read_text()
    assert json.loads(line, parse_constant=pytest.fail) == {
        "step": 7,
        "loss": None,
        "norm": None,
        "skipped": True,
    }
    (row,) = metrics.read_metrics(path)
    assert math.isnan(row["loss"]) and row["step"] == 7


def test_broken_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"loss": 2.0}\n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2: not a JSON object with a step"):
        metrics.read_metrics(path)
    with pytest.raises(ValueError, match="line 2"):
        metrics.MetricsWriter(tmp_path, start_step=2)
    assert path.read_text().count("\n") == 3


def test_tensorboard_gets_every_scalar(tmp_path: Path) -> None:
    from tensorboardX.proto.event_pb2 import Event

    with metrics.MetricsWriter(tmp_path, start_step=3) as writer:
        writer.write(3, {"train/loss": 0.5, "kind": "law"})
    (file,) = (tmp_path / "tensorboard").iterdir()
    content, events = file.read_bytes(), []
    while content:  # a TFRecord is: length, its checksum, the record, its checksum
        (length,) = struct.unpack("<Q", content[:8])
        events.append(Event.FromString(content[12 : 12 + length]))
        content = content[16 + length :]
    values = [(e.step, v.tag, v.simple_value) for e in events for v in e.summary.value]
    assert values == [(3, "train/loss", 0.5)]
    assert any(e.session_log.status == 1 and e.step == 3 for e in events)


def test_only_process_zero_writes(tmp_path: Path) -> None:
    with metrics.MetricsWriter(tmp_path / "none", enabled=False) as writer:
        writer.write(1, {"loss": 1.0})
    assert not (tmp_path / "none").exists()
    stream = io.StringIO()
    with metrics.Progress(10, enabled=False, stream=stream, interval=0) as progress:
        progress.update(10, 1.0, 5)
    assert stream.getvalue() == ""


class Clock:
    """Stands in for the `time` module; moves only when told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(metrics, "time", self)

    def monotonic(self) -> float:
        return self.now


def test_rate_left_and_utilisation_exclude_compilation_and_pauses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, stream = Clock(monkeypatch), io.StringIO()
    progress = metrics.Progress(
        100, 10, flops_per_token=6e6, peak_flops=3e9, stream=stream, interval=0
    )
    clock.now += 60  # compilation
    progress.update(11, 2.0, 512)
    assert progress.tokens_per_second is None and progress.seconds_left is None
    for step in (12, 14):
        clock.now += 2
        with progress.pause():
            clock.now += 500
        progress.update(step, 1.5, 400)
    assert progress.tokens_per_second == pytest.approx(200)
    assert progress.flops_utilisation == pytest.approx(200 * 6e6 / 3e9)
    assert progress.seconds_left == pytest.approx(86 / (3 / 4))
    line = "step 14/100, loss 1.5000, 200 tokens/s, 40.0% of peak FLOP/s, 01:54 left"
    assert stream.getvalue().splitlines()[-1] == line


def test_rate_follows_the_last_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    progress = metrics.Progress(1000, stream=io.StringIO())
    for step in range(1, 100):
        clock.now += 1.0 if step < 50 else 0.1
        progress.update(step, 1.0, 100)
    assert progress.tokens_per_second == pytest.approx(1000)


def test_without_a_terminal_a_line_comes_now_and_then_and_at_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, stream = Clock(monkeypatch), io.StringIO()
    progress = metrics.Progress(100, stream=stream, interval=30)
    for step in range(1, 101):
        clock.now += 1
        progress.update(step, 1.0, 1)
    lines = stream.getvalue().splitlines()
    shown = [int(line.split("/")[0].removeprefix("step ")) for line in lines]
    assert shown == [1, 31, 61, 91, 100]


def test_on_a_terminal_there_is_one_bar() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    with metrics.Progress(4, 1, stream=stream) as progress:
        for step in (2, 3, 4):
            progress.update(step, 0.125, 10)
            time.sleep(0.11)  # tqdm draws ten times a second
    last = stream.getvalue().split("\r")[-1]
    assert "4/4" in last and "loss 0.1250" in last and "tokens/s" in last


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("TPU v4", 275e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5e", 197e12),
        ("TPU v5", 459e12),
        ("TPU v5p", 459e12),
        ("TPU v6 lite", 918e12),
        ("TPU7x", 1153.5e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("TPU v4 lite", None),
        ("Radeon", None),
    ],
)
def test_peak_flops_by_device_kind(kind: str, peak: float | None) -> None:
    assert accelerators.peak_flops(kind) == peak


def test_cpu_peak_is_measured_once_whatever_the_virtual_devices() -> None:
    if jax.default_backend() != "cpu":
        pytest.skip("measures the CPU")
    start = time.monotonic()
    peak = metrics.peak_flops_per_second()
    assert peak is not None and 1e9 < peak < 1e14
    assert metrics.peak_flops_per_second(jax.devices()[:1]) == peak
    assert time.monotonic() - start < 10


def test_peak_memory_covers_what_was_held() -> None:
    if jax.local_devices()[0].memory_stats():
        pytest.skip("the device has memory of its own")
    size = 64 * 2**20
    before = metrics.peak_memory_bytes()
    held = [np.ones(size, np.uint8) for _ in range(1 + before // size // 4)]
    status = Path("/proc/self/status").read_text()
    resident = int(status.split("VmRSS:")[1].split()[0]) * 1024
    assert metrics.peak_memory_bytes() >= resident > sum(array.nbytes for array in held)


def test_second_process_compiles_nothing(tmp_path: Path) -> None:
    program = (
        "import jax, jax.numpy as jnp\n"
        "from research.runtime.compilation_cache import enable_compilation_cache\n"
        "enable_compilation_cache()\n"
        "jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)\n"
        "jax.jit(lambda x: jnp.sin(x) @ x.T)(jnp.ones((8, 8))).block_until_ready()\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    environment["GRAFT_CACHE"] = str(tmp_path)

    def entries() -> dict[str, int]:
        subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, check=True)
        return {p.name: p.stat().st_mtime_ns for p in tmp_path.rglob("*-cache")}

    first = entries()
    assert any("lambda" in name for name in first)
    assert entries() == first


def test_cache_folder_given_in_the_environment_is_kept() -> None:
    before = jax.config.values["jax_compilation_cache_dir"]
    assert enable_compilation_cache() == os.environ["JAX_COMPILATION_CACHE_DIR"] == before
