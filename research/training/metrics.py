"""What a run reports: metrics to JSONL and TensorBoard, a progress bar, and the machine's limits.

Only process 0 writes. A resumed run's `metrics.jsonl` equals an uninterrupted run's, apart from
what was measured with a clock.
"""

import collections
import contextlib
import functools
import json
import logging
import math
import os
import re
import resource
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import jax
import jax.numpy as jnp
import tqdm

from research.runtime import accelerators, storage

log = logging.getLogger(__name__)

METRICS = "metrics.jsonl"


class MetricsWriter:
    """Appends metrics to `workdir/metrics.jsonl` and to TensorBoard in `workdir/tensorboard`.

    Every line is one JSON object with `step`, flushed at once; a non-finite number is null, as JSON
    knows none. Lines of `start_step` and later, and a line torn by a kill, are dropped first: a run
    resumed at a step writes them again. In a bucket, where nothing can be appended to, they are
    copies of local files, renewed at each `mirror`, after MIRROR seconds and at the end.
    """

    MIRROR = 30

    def __init__(
        self, workdir: str | Path, start_step: int = 0, enabled: bool | None = None
    ) -> None:
        """Opens the files.

        Args:
            workdir: the run's folder; made if absent.
            start_step: the first step that this process will report.
            enabled: False makes every method do nothing. Default: whether this is process 0.
        """
        self.enabled = jax.process_index() == 0 if enabled is None else enabled
        if not self.enabled:
            return
        from tensorboardX import SummaryWriter  # here: the other processes need not load it

        folder = storage.absolute(workdir)
        self._remote = folder if storage.is_remote(folder) else None
        if self._remote:
            self._local = tempfile.TemporaryDirectory(prefix="graft-metrics-")
            if (folder / METRICS).exists():
                whole = (folder / METRICS).read_bytes()
                (Path(self._local.name) / METRICS).write_bytes(whole)
            folder = self._local.name
        path = Path(folder) / METRICS
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            _drop_lines(path, start_step)
        self._folder, self._mirrored = path.parent, time.monotonic()
        self._file = path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(path.parent / "tensorboard"), purge_step=start_step)

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Writes one line.

        Args:
            step: the train step that the metrics belong to.
            metrics: name -> scalar (a number or an array of size 1, which is waited for) or text,
                which only the JSONL gets. Names with a slash are grouped by TensorBoard.

        Raises:
            OSError: the disk is full. The file is whole up to the line before.
        """
        if not self.enabled:
            return
        line: dict[str, Any] = {"step": int(step)}
        for name, value in metrics.items():
            if isinstance(value, str):
                line[name] = value
                continue
            number = value if isinstance(value, int) else float(value)
            line[name] = number if math.isfinite(number) else None
            self._board.add_scalar(name, number, step)
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()
        if self._remote and time.monotonic() - self._mirrored > self.MIRROR:
            self.mirror()

    def mirror(self) -> None:
        """Copies the files to the bucket, if the folder is in one; a failure is only logged, as the
        next copy is of the whole files."""
        if not self.enabled or not self._remote:
            return
        self._mirrored = time.monotonic()
        self._board.flush()
        try:
            for file in self._folder.rglob("*"):
                if file.is_file():
                    copy = self._remote / file.relative_to(self._folder).as_posix()
                    copy.write_bytes(file.read_bytes())
        except Exception as error:  # gcsfs, aiohttp and Google's libraries each have their own
            log.warning("metrics were not copied to %s: %s", self._remote, error)

    def close(self) -> None:
        if self.enabled:
            self.mirror()
            self._file.close()
            self._board.close()

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """Reads a `metrics.jsonl`; null becomes NaN, and a torn last line is left out.

    Raises ValueError that names the line where another line is broken.
    """
    rows = [row for row, _ in _read_lines(storage.absolute(path))]
    return [{k: math.nan if v is None else v for k, v in row.items()} for row in rows]


def _read_lines(path: Any) -> Iterator[tuple[dict[str, Any], str]]:
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), start=1):
        if not line.endswith(b"\n"):
            return  # the process died while it wrote this line
        try:
            row = json.loads(line)
            row["step"]
        except (ValueError, KeyError, TypeError):
            raise ValueError(
                f"{path}, line {number}: not a JSON object with a step; delete the line"
            ) from None
        yield row, line.decode()


def _drop_lines(path: Path, start_step: int) -> None:
    whole = path.with_suffix(".part")
    with whole.open("w", encoding="utf-8") as kept:
        kept.writelines(line for row, line in _read_lines(path) if row["step"] < start_step)
        kept.flush()
        os.fsync(kept.fileno())
    whole.replace(path)


class Progress:
    """A progress bar: step, loss, tokens per second, time left, model-FLOPs utilisation.

    On a terminal it is a tqdm bar; elsewhere it prints a line every `interval` seconds and at the
    end. The rate is that of the last `WINDOW` updates. The first update only starts the clock, so
    that compilation does not count, and neither does what runs inside `pause()`.
    """

    WINDOW = 20

    def __init__(
        self,
        total_steps: int,
        start_step: int = 0,
        *,
        flops_per_token: float | None = None,
        peak_flops: float | None = None,
        enabled: bool | None = None,
        stream: IO[str] | None = None,
        interval: float = 30.0,
    ) -> None:
        """Shows nothing yet.

        Args:
            total_steps: the step at which the run ends.
            start_step: steps already done.
            flops_per_token: model FLOPs that one trained token costs, forward and backward.
            peak_flops: FLOP/s of all devices together; see `peak_flops_per_second`.
            enabled: whether to show anything. Default: whether this is process 0.
            stream: default standard error.
            interval: seconds between lines where the stream is no terminal.
        """
        self.total_steps = total_steps
        self.step = start_step
        self._flops_share = flops_per_token / peak_flops if flops_per_token and peak_flops else None
        self._enabled = jax.process_index() == 0 if enabled is None else enabled
        self._stream = sys.stderr if stream is None else stream
        self._interval = interval
        self._marks: collections.deque[tuple[float, int, int]] = collections.deque(
            maxlen=self.WINDOW + 1
        )
        self._tokens = 0
        self._paused = 0.0
        self._printed = -math.inf
        self._bar: tqdm.tqdm | None = None
        if self._enabled and self._stream.isatty():
            self._bar = tqdm.tqdm(
                total=total_steps,
                initial=start_step,
                file=self._stream,
                dynamic_ncols=True,
                bar_format="{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}",
            )

    def update(self, step: int, loss: float, tokens: int) -> None:
        """Reports that `step` steps are done, the last of them with `loss`.

        Args:
            step: steps done since the run's start.
            loss: mean loss per trained token.
            tokens: tokens read since the last update.
        """
        self._tokens += tokens
        self.step = step
        self._marks.append((time.monotonic() - self._paused, self._tokens, step))
        if not self._enabled:
            return
        text = self._describe(loss)
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(step - self._bar.n)
        elif step >= self.total_steps or time.monotonic() - self._printed >= self._interval:
            self._printed = time.monotonic()
            print(f"step {step}/{self.total_steps}, {text}", file=self._stream, flush=True)

    @property
    def tokens_per_second(self) -> float | None:
        """Rate over the last updates; None before the second."""
        return self._rate(1)

    @property
    def flops_utilisation(self) -> float | None:
        """Share of the devices' peak FLOP/s that the model's FLOPs reach, or None if unknown."""
        rate = self.tokens_per_second
        return None if rate is None or self._flops_share is None else rate * self._flops_share

    @property
    def seconds_left(self) -> float | None:
        """Time left at the present rate, without pauses; None before the second update."""
        steps_per_second = self._rate(2)
        return (self.total_steps - self.step) / steps_per_second if steps_per_second else None

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Stops the clock, for an evaluation between two steps."""
        start = time.monotonic()
        try:
            yield
        finally:
            self._paused += time.monotonic() - start

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _rate(self, column: int) -> float | None:
        if len(self._marks) < 2:
            return None
        first, last = self._marks[0], self._marks[-1]
        return (last[column] - first[column]) / max(last[0] - first[0], 1e-9)

    def _describe(self, loss: float) -> str:
        parts = [f"loss {loss:.4f}"]
        if self.tokens_per_second is not None:
            parts.append(f"{self.tokens_per_second:,.0f} tokens/s")
        if self.flops_utilisation is not None:
            parts.append(f"{self.flops_utilisation:.1%} of peak FLOP/s")
        if self.seconds_left is not None:
            parts.append(f"{tqdm.tqdm.format_interval(self.seconds_left)} left")
        return ", ".join(parts)


def peak_flops_per_second(devices: Sequence[jax.Device] | None = None) -> float | None:
    """Peak FLOP/s of `devices` (default: all, of every process) together.

    Accelerators: dense bfloat16, from `research.runtime.accelerators`; None for a kind unknown
    there.
    CPU: the fastest float32 product measured here, once (0.3 s), for every process; a process's
    virtual devices share one machine.
    """
    devices = jax.devices() if devices is None else devices
    if devices[0].platform == "cpu":
        return _measured_cpu_flops() * len({device.process_index for device in devices})
    peak = accelerators.peak_flops(devices[0].device_kind)
    return None if peak is None else peak * len(devices)


@functools.cache
def _measured_cpu_flops(size: int = 2048, seconds: float = 0.25) -> float:
    cpu = jax.local_devices(backend="cpu")[0]
    matrix = jax.device_put(jnp.ones((size, size), jnp.float32), cpu)
    product = jax.jit(jnp.matmul)
    product(matrix, matrix).block_until_ready()
    fastest = math.inf
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        start = time.perf_counter()
        product(matrix, matrix).block_until_ready()
        fastest = min(fastest, time.perf_counter() - start)
    return 2 * size**3 / fastest


def peak_memory_bytes() -> int:
    """The most memory used so far by this process: of its fullest device where devices have
    memory of their own, else the process's resident set.

    Both only grow: of two runs in one process, the second one's peak includes the first's.
    """
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [s["peak_bytes_in_use"] for s in stats if "peak_bytes_in_use" in s]
    if peaks:
        return max(peaks)
    # Linux keeps getrusage's figure over exec, so that a child starts with its parent's.
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s*(\d+) kB", status.read_text()) if status.exists() else None
    if found:
        return int(found[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
