"""The harness of all benchmarks: contenders in processes of their own, rounds in turn, ratios.

A machine's speed drifts by more than what is measured, so that two figures from two runs say
little. Here every contender is prepared first, then all take turns for a few rounds; a ratio is
taken within a round, and its spread is over rounds.

A contender is a module with `prepare(settings) -> (info, run)`: settings and `info` are mappings
that JSON can hold, and every call of `run()` does the work once and returns its seconds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
# As the project's launchers set it; contenders of others get it too.
ENVIRONMENT = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # contenders share an accelerator's memory
    "TOKENIZERS_PARALLELISM": "false",
}
MARK = "\x1e"  # starts the lines that are meant for the parent

# a benchmark's numbers (and what they were measured on) by dotted name, as --json writes them
Results = dict[str, float | str | None]
# a contender: its module and settings
Entrant = tuple[str, Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Contender:
    """A process that is ready to run one thing again and again."""

    name: str
    process: subprocess.Popen
    info: Mapping[str, Any]

    def round(self, seconds: float) -> list[float]:
        """Runs for at least `seconds` (twice or more) and returns each run's seconds."""
        return _ask(self.process, self.name, {"seconds": seconds})

    def peak_memory(self) -> int:
        """The most bytes that it has held so far: of the device if that has its own memory."""
        return _ask(self.process, self.name, {"memory": True})


@contextlib.contextmanager
def contenders(modules: Mapping[str, Entrant]) -> Iterator[list[Contender]]:
    """Prepares contenders one after another, and ends them.

    Raises:
      RuntimeError: one of them died; its own message is on standard error.
    """
    ready: list[Contender] = []
    try:
        for name, (module, settings) in modules.items():
            start = time.monotonic()
            print(f"preparing {name} ...", end="", file=sys.stderr, flush=True)
            command = [sys.executable, "-m", __spec__.name, module, json.dumps(dict(settings))]
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**ENVIRONMENT, **os.environ},  # what a user has set stands
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            ready.append(Contender(name, process, {}))
            ready[-1] = Contender(name, process, _answer(process, name))
            print(f" {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
        yield ready
    finally:
        for contender in ready:
            contender.process.kill()
            contender.process.wait()


def take_turns(
    ready: Sequence[Contender], rounds: int, seconds: float
) -> dict[str, list[list[float]]]:
    """Every contender's seconds, `{name: [round][run]}`; the first round only warms up."""
    times: dict[str, list[list[float]]] = {contender.name: [] for contender in ready}
    for number in range(rounds + 1):
        print(f"round {number} of {rounds}", file=sys.stderr, flush=True)
        for contender in ready:
            runs = contender.round(seconds if number else 0.0)
            if number:
                times[contender.name].append(runs)
            time.sleep(0.3)  # idle threads of the last one stop spinning
    return times


@dataclasses.dataclass(frozen=True)
class Spread:
    """The median over rounds, the smallest and the largest."""

    middle: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))

    def inverse(self) -> Spread:
        return Spread(1 / self.middle, 1 / self.high, 1 / self.low)

    def __truediv__(self, by: float) -> Spread:
        return Spread(self.middle / by, self.low / by, self.high / by)

    def to_results(self, name: str) -> Results:
        return {name: self.middle, f"{name}.low": self.low, f"{name}.high": self.high}

    def __format__(self, spec: str) -> str:
        return f"{self.middle:{spec}} [{self.low:{spec}}, {self.high:{spec}}]"


def rate(work: float, rounds: Sequence[Sequence[float]]) -> Spread:
    """Work a second, by the median run of each round."""
    return Spread.of([work / statistics.median(runs) for runs in rounds])


def ratio(of: Sequence[Sequence[float]], to: Sequence[Sequence[float]]) -> Spread:
    """The speed of `of` over that of `to`, round by round."""
    pairs = zip(of, to, strict=True)
    return Spread.of([statistics.median(b) / statistics.median(a) for a, b in pairs])


def positive(text: str) -> int:
    """An argument that must be a whole number over zero."""
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value


def machine() -> dict[str, str]:
    """The processor and the system, for the record."""
    processor = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                processor = line.partition(":")[2].strip()
                break
    return {"processor": processor, "cores": str(os.cpu_count()), "python": sys.version.split()[0]}


@dataclasses.dataclass
class MemorySample:
    """Anonymous memory around a block, in bytes, and the block's seconds.

    The pages of a mapped file belong to the system's cache and go when somebody needs them.
    """

    before: float
    # the most that the block added, and what it left
    bytes: float = 0.0
    seconds: float = 0.0
    after: float = 0.0


@contextlib.contextmanager
def sampled_memory() -> Iterator[MemorySample]:
    """Samples memory while the block runs; the numbers are there at its end."""
    before, start = _anonymous_bytes(), time.perf_counter()
    sample, stop = MemorySample(float(before)), threading.Event()

    def watch() -> None:
        while not stop.wait(0.005):
            sample.bytes = max(sample.bytes, _anonymous_bytes() - before)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield sample
    finally:
        stop.set()
        thread.join()
        sample.after = float(_anonymous_bytes() - before)
        sample.seconds = time.perf_counter() - start


def _anonymous_bytes() -> int:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return sum(int(n) * 1024 for n in re.findall(r"Rss(?:Anon|Shmem):\s*(\d+) kB", status))


def write_json(path: Path | None, results: Mapping[str, Any]) -> None:
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(dict(results), indent=1) + "\n", encoding="utf-8")
        print(f"wrote {path}")


def _ask(process: subprocess.Popen, name: str, question: Mapping[str, Any]) -> Any:
    assert process.stdin
    try:
        process.stdin.write(json.dumps(question) + "\n")
        process.stdin.flush()
    except BrokenPipeError:
        pass  # the answer says how it ended
    return _answer(process, name)


def _answer(process: subprocess.Popen, name: str) -> Any:
    assert process.stdout
    for line in process.stdout:
        if line.startswith(MARK):
            return json.loads(line.removeprefix(MARK))
        sys.stderr.write(line)
    raise RuntimeError(f"{name} ended with status {process.wait()}; its own message is above")


def _serve(module: str, settings: Mapping[str, Any]) -> None:
    """Runs a contender as the child: prepares, then runs as often as the parent asks."""
    contender = importlib.import_module(module)
    info, run = contender.prepare(settings)
    _send(info)
    for line in sys.stdin:
        question = json.loads(line)
        if "memory" in question:
            _send(contender.peak_memory())
            continue
        run()  # not counted: it fills caches and memory again after the others' turns
        runs: list[float] = []
        while len(runs) < 2 or sum(runs) < question["seconds"]:
            runs.append(run())
        _send(runs)


def _send(answer: Any) -> None:
    print(MARK + json.dumps(answer), flush=True)


if __name__ == "__main__":
    _serve(sys.argv[1], json.loads(sys.argv[2]))
