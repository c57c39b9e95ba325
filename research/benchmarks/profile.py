"""The time of a train step, by part of the model and by kind of operation.

The seconds are those of XLA's own trace. On a CPU an operation counts on the thread that ran it,
so that over several cores the parts may add up to more than the step; `taskset -c 0` makes them
comparable. A fusion counts as the operation that it ends with.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from research.benchmarks import graft_step, harness
from research.benchmarks.shapes import SHAPES
from research.optim.optimizers import OPTIMIZERS

# `jax.named_scope`s of the step and of the model
SCOPES = ("attention", "mlp", "loss", "optimizer", "apply")
_INSTRUCTION = re.compile(r"\s*(?:ROOT )?%?([\w.\-]+) = (\S+) .*op_name=\"([^\"]*)\"")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shape", choices=SHAPES, default="smollm2")
    parser.add_argument("--method", choices=graft_step.METHODS, default="full")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="adamw")
    parser.add_argument("--top", type=int, default=30, help="lines to print")
    parser.add_argument("--trace", metavar="FOLDER", help="keep the trace, for XProf or Perfetto")


def main(arguments: argparse.Namespace) -> Mapping[str, Any]:
    settings = {
        name: getattr(arguments, name) for name in ("shape", "method", "dtype", "optimizer")
    }
    with tempfile.TemporaryDirectory() as folder:
        module = (__spec__.name, settings | {"trace": folder})
        with harness.contenders({"graft": module}) as ready:
            info = ready[0].info
        if arguments.trace:
            shutil.copytree(folder, arguments.trace, dirs_exist_ok=True)
            print(f"trace in {arguments.trace}: open it with XProf or ui.perfetto.dev")
    busy = sum(seconds for _, seconds, _ in info["operations"])
    print(f"a step takes {info['step_seconds'] * 1e3:,.1f} ms; operations ran {busy * 1e3:,.1f} ms")
    for what, seconds, times in info["operations"][: arguments.top]:
        print(f"{seconds / busy:7.1%} {seconds * 1e3:10.2f} ms {times:7.0f} x  {what}")
    return info


def prepare(settings: Mapping[str, Any]):
    """A contender whose `info` holds `operations`: [what, seconds a step, times a step]."""
    step, facts, run = graft_step.build(settings)
    run()  # the first step after compiling still gathers memory
    with jax.profiler.trace(settings["trace"]):
        seconds = [run() for _ in range(3)]
    files = list(Path(settings["trace"]).rglob("*.xplane.pb"))
    operations = _operations(files[0], _meanings(step.as_text()), len(seconds))
    info = dataclasses.asdict(facts)
    return info | {"step_seconds": min(seconds), "operations": operations}, run


def _operations(
    file: Path, meanings: Mapping[str, str], steps: int
) -> list[tuple[str, float, float]]:
    """Each kind of operation, its seconds and its times a step; the longest first."""
    seconds: dict[str, float] = collections.defaultdict(float)
    times: dict[str, int] = collections.defaultdict(int)
    for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
        for line in plane.lines:
            for event in line.events:
                # what only contains others
                name = dict(event.stats).get("hlo_op")
                if name is None or name.startswith(("while", "call", "conditional")):
                    continue
                what = meanings.get(name) or "rest " + re.sub(r"[.\d]+$", "", name)
                seconds[what] += event.duration_ns / 1e9 / steps
                times[what] += 1
    entries = [(what, seconds[what], times[what] / steps) for what in seconds]
    return sorted(entries, key=lambda entry: -entry[1])


def _meanings(program: str) -> dict[str, str]:
    """The purpose of each instruction: `mlp backward dot_general f32[1024,1536]`."""
    result = {}
    for line in program.splitlines():
        if match := _INSTRUCTION.match(line):
            name, shape, path = match.groups()
            scopes = [word for word in re.split(r"\W+", path) if word in SCOPES]
            backward = " backward" if "transpose(" in path else ""
            again = " recomputed" if "rematted" in path else ""
            operation = re.sub(r"\W.*", "", path.rpartition("/")[2])
            size = shape.partition("{")[0]
            result[name] = f"{scopes[-1] if scopes else 'rest'}{backward}{again} {operation} {size}"
    return result
