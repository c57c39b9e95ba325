"""The time of a sweep in one process beside that of as many `graft train` commands.

Both sides train the same trials, some rates over some seeds, each measured on held-out text at its
end; programs are compiled and data is tokenized before. Half of the commands run before the sweep
and half after it, because machines drift; processor seconds say what a busy machine blurs. Every
trial must end with the same loss on both sides: to the last bit, or to rounding where workers share
the cores (products are split otherwise then).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from research.benchmarks import harness

# largest relative difference of losses after some hundred steps in float32
ROUNDING = 1e-4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", default="configs/quickstart/tune.py:lora")
    parser.add_argument("--base", default="runs/quickstart/pretrain")
    parser.add_argument("--steps", type=harness.positive, default=300)
    parser.add_argument("--rates", nargs="+", type=float, default=[1e-3, 2.5e-3, 5e-3])
    parser.add_argument("--seeds", type=harness.positive, default=4)
    parser.add_argument("--workers", default="auto", metavar="N", help="as of graft sweep")
    parser.add_argument("--split", default="validation", help="what the loss is measured on")


def main(arguments: argparse.Namespace) -> harness.Results:
    if not Path(arguments.base).exists():
        raise SystemExit(f"{arguments.base} is not there: run tools/quickstart first")
    trials = [(rate, seed) for rate in arguments.rates for seed in range(arguments.seeds)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print("compiling", file=sys.stderr)
        _command(arguments, folder / "warm", *trials[0], steps=20)
        _sweep(arguments, folder / "warm sweep", trials[:1], steps=20)
        half = len(trials) // 2
        commands = _Times()
        for rate, seed in trials[:half]:
            commands += _command(arguments, folder / f"{rate} {seed}", rate, seed)
        sweep = _sweep(arguments, folder / "sweep", trials)
        for rate, seed in trials[half:]:
            commands += _command(arguments, folder / f"{rate} {seed}", rate, seed)
        alone = sorted(_loss(folder / f"{rate} {seed}") for rate, seed in trials)
        shared = sorted(
            _loss(path.parent) for path in folder.glob("sweep/trials/*/run/summary.json")
        )
    tolerance = 0.0 if arguments.workers == "1" else ROUNDING
    if not np.allclose(alone, shared, rtol=tolerance, atol=0.0):
        raise RuntimeError(f"the losses differ: {alone} of commands, {shared} of the sweep")
    print(f"{len(trials)} trials of {arguments.steps} steps, {arguments.config}; the same losses")
    for what, times in (("commands", commands), ("one sweep", sweep)):
        print(f"  {what:10} {times.wall:7.1f} s, {times.processor:7.1f} s of processors")
    print(
        f"  the sweep takes {sweep.wall / commands.wall:.1%} of the time, "
        f"{sweep.processor / commands.processor:.1%} of the processor seconds"
    )
    return {
        **harness.machine(),
        "trials": len(trials),
        "steps": arguments.steps,
        "commands.seconds": commands.wall,
        "commands.processor_seconds": commands.processor,
        "sweep.seconds": sweep.wall,
        "sweep.processor_seconds": sweep.processor,
        "share": sweep.wall / commands.wall,
        "processor_share": sweep.processor / commands.processor,
    }


class _Times:
    """Seconds of processes: of the clock, and of all processors."""

    def __init__(self, wall: float = 0.0, processor: float = 0.0):
        self.wall, self.processor = wall, processor

    def __add__(self, other: _Times) -> _Times:
        return _Times(self.wall + other.wall, self.processor + other.processor)


def _command(
    arguments: argparse.Namespace, workdir: Path, rate: float, seed: int, steps: int = 0
) -> _Times:
    """One `graft train`."""
    numbers = {"schedule.learning_rate": rate, "seed": seed, "data.seed": seed}
    overrides = [f"--config.{name}={value}" for name, value in numbers.items()]
    return _run(["train", "--workdir", str(workdir), *overrides], arguments, steps)


def _sweep(
    arguments: argparse.Namespace,
    folder: Path,
    trials: Sequence[tuple[float, int]],
    steps: int = 0,
) -> _Times:
    """One `graft sweep` over the rates and seeds of trials."""
    rates = ",".join(dict.fromkeys(str(rate) for rate, _ in trials))
    seeds = len({seed for _, seed in trials})
    line = ["sweep", "--folder", str(folder), "--axis", f"learning_rate={rates}"]
    line += ["--seeds", str(seeds), "--workers", arguments.workers]
    return _run(line, arguments, steps)


def _run(line: Sequence[str], arguments: argparse.Namespace, steps: int) -> _Times:
    """Runs a graft command; raises RuntimeError with its output where it fails."""
    command = [
        sys.executable, "-m", "research.cli", *line, "--config", arguments.config,
        f"--config.init_from={arguments.base}", f"--config.steps={steps or arguments.steps}",
        f"--config.evaluate_split={arguments.split}",
    ]  # fmt: skip
    print(" ".join(command[1:]), file=sys.stderr)
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    process = subprocess.run(
        command,
        cwd=harness.ROOT,
        env={**harness.ENVIRONMENT, **os.environ},
        capture_output=True,
        text=True,
    )
    wall, after = time.monotonic() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{process.stdout}{process.stderr}")
    user, system = after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime
    return _Times(wall, user + system)


def _loss(workdir: Path) -> float:
    return float(json.loads((workdir / "summary.json").read_text())["heldout_loss"])
