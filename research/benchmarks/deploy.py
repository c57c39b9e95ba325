"""One whole model a task beside one base with an adapter a task, and beside merged exports.

For each number of tasks, and each way to serve them: bytes on disk and of arrays in memory, the
seconds to load and to the first token of another task, and tokens a second of requests that are all
of one task and of requests each of the next task. All requests come at one time; latency is until a
request's answer is whole, while others are answered or wait. Files are in the system's cache.

The base is `--run`. Adapters are `--adapter`, in turn where there are more tasks, or else what the
method of `--config` attaches before it is trained: as large and as slow as after it. Whole models
are those adapters merged. All must answer alike before anything is timed (in float32).
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from research import sharding
from research.adapters import merging
from research.adapters.compatibility import common_base
from research.benchmarks import deployment_paths, harness
from research.benchmarks.deployment_paths import PATHS
from research.benchmarks.generate import SAME_TOKENS
from research.checkpoints import runs
from research.checkpoints.runs import Run
from research.config import cli
from research.experiment import Experiment
from research.generation.decoder import Request
from research.interop import exporting, importing
from research.interop.family import parameter_shapes
from research.reports.tables import Column, text_table
from research.runtime import memory, storage
from research.runtime.compilation_cache import enable_compilation_cache

MB = 10**6
WHOLE = "whole_models"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run", required=True, metavar="DIR", help="the base")
    parser.add_argument(
        "--adapter", nargs="+", default=[], metavar="RUN", help="runs that were tuned on the base"
    )
    parser.add_argument(
        "--config",
        default="configs/finetune/smollm2_lora.py",
        help="whose method makes an adapter, where none is given",
    )
    parser.add_argument("--tasks", nargs="+", type=harness.positive, default=[1, 8, 32])
    parser.add_argument(
        "--requests", type=harness.positive, default=32, help="that come at one time"
    )
    parser.add_argument(
        "--rows", type=harness.positive, default=8, help="of a model that are answered at a time"
    )
    parser.add_argument("--prompt-tokens", type=harness.positive, default=64)
    parser.add_argument("--new-tokens", type=harness.positive, default=16)
    parser.add_argument(
        "--rounds", type=harness.positive, default=3, help="turns that every way takes"
    )
    parser.add_argument("--folder", help="where to write models; by default a temporary one")


@dataclasses.dataclass(frozen=True)
class _Turn:
    """What a way to serve took in one round, in seconds and bytes."""

    memory: float
    load_seconds: float
    another_task_seconds: float
    one_seconds: float
    mixed_seconds: float
    latency_seconds: float
    worst_latency_seconds: float


# one of `PATHS`, and so many tasks
Way = tuple[str, int]


def main(arguments: argparse.Namespace) -> harness.Results:
    if max(arguments.tasks) > arguments.requests:
        raise ValueError(
            f"--tasks {max(arguments.tasks)}: {arguments.requests} requests do not reach them all; "
            f"give --requests {max(arguments.tasks)} at least"
        )
    enable_compilation_cache()
    base = runs.open_run(storage.require_local(arguments.run, "--run"))
    if base.base is not None:
        raise ValueError(f"--run {arguments.run} is an adapter: name its base, and it as --adapter")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        adapters = _open_adapters(arguments, base, Path(folder))
        results: harness.Results = {**harness.machine(), "method": adapters[0].method.kind}
        merged_models, figures = _merge(adapters, Path(folder))
        results |= figures | _export(adapters[0], Path(folder) / "export")
        ways = _ways(arguments, merged_models[0])
        turns = _take_turns(arguments, ways, adapters, merged_models)
        sizes = {
            "base": [_folder_bytes(base)],
            "adapter": [*map(_folder_bytes, adapters)],
            "model": [*map(_folder_bytes, merged_models)],
        }
    results |= {f"{name}.bytes": statistics.mean(each) for name, each in sizes.items()}
    results |= {f"{name}.{tasks}.memory": None for name, tasks in {*_all(arguments)} - {*ways}}
    return results | _report(arguments, turns, sizes, results)


def _open_adapters(arguments: argparse.Namespace, base: Run, folder: Path) -> list[Run]:
    """The runs of `--adapter`, or one that the method of `--config` attaches."""
    if not arguments.adapter:
        method = cli.load(Experiment, arguments.config).method.bind(base.tokenizer)
        return [deployment_paths.write_adapter(base, method, folder / "adapter")]
    adapters = [runs.open_run(storage.require_local(n, "--adapter")) for n in arguments.adapter]
    if common_base(adapters).fingerprint != base.fingerprint:
        raise ValueError(f"{arguments.adapter[0]} was tuned on another base than {arguments.run}")
    return adapters


def _merge(adapters: Sequence[Run], folder: Path) -> tuple[list[Run], harness.Results]:
    """A whole model of each adapter, and what merging took."""
    seconds = []
    for number, adapter in enumerate(adapters):
        start = time.perf_counter()
        merging.merge(adapter, folder / f"merged-{number}")
        seconds.append(time.perf_counter() - start)
    models = [runs.open_run(folder / f"merged-{number}") for number in range(len(adapters))]
    return models, {"merge.seconds": statistics.median(seconds)}


def _export(adapter: Run, out: Path) -> harness.Results:
    """A merged export for transformers: its bytes, and the seconds to write and to read it."""
    start = time.perf_counter()
    try:
        exporting.export_huggingface(adapter, out)
    except ValueError as error:
        print(f"no merged export: {error}")
        return {"export.bytes": None}
    write_end = time.perf_counter()
    model = importing.open_model(out)
    shapes = sharding.shard_any_axis(parameter_shapes(model.config))
    arrays = dict(importing.read_parameters(model, shapes))
    jax.block_until_ready(arrays)
    return {
        "export.bytes": float(deployment_paths.folder_bytes(out)),
        "export.seconds": write_end - start,
        "export.load_seconds": time.perf_counter() - write_end,
    }


def _all(arguments: argparse.Namespace) -> list[Way]:
    return [(name, tasks) for name in PATHS for tasks in arguments.tasks]


def _ways(arguments: argparse.Namespace, whole_model: Run) -> list[Way]:
    """What is measured: all that fits into memory; says what does not."""
    free, each = memory.free_bytes(), deployment_paths.model_bytes(whole_model)
    ways = []
    for name, tasks in _all(arguments):
        need = (tasks + 1) * each  # one more while it is read
        if name == WHOLE and free is not None and need > free:
            print(
                f"{tasks} whole models need {need / 1e9:.1f} GB with the one that is read, and "
                f"{free / 1e9:.1f} are free: not measured"
            )
        else:
            ways.append((name, tasks))
    return ways


def _take_turns(
    arguments: argparse.Namespace,
    ways: Sequence[Way],
    adapters: Sequence[Run],
    merged_models: Sequence[Run],
) -> dict[Way, list[_Turn]]:
    """Every way in turn, round after round; the first round only compiles and compares answers."""
    turns: dict[Way, list[_Turn]] = {way: [] for way in ways}
    answers: dict[int, list[list[int]]] = {}
    requests = _requests(arguments, adapters[0])
    mesh, rules = sharding.one_device()
    for number in range(arguments.rounds + 1):
        for name, tasks in ways:
            print(f"round {number} of {arguments.rounds}: {name}, {tasks}", file=sys.stderr)
            runs_of_tasks = (
                [members[task % len(members)] for task in range(tasks)]
                for members in (adapters, merged_models)
            )
            with sharding.mesh_context(mesh, rules):
                turn, tokens = _measure(arguments, name, tasks, requests, *runs_of_tasks)
            memory.release_memory()
            if number:
                turns[name, tasks].append(turn)
            else:
                expected = answers.setdefault(tasks, tokens)
                _check_same(name, expected, tokens, adapters[0].model.compute_dtype)
    return turns


def _measure(
    arguments: argparse.Namespace,
    name: str,
    tasks: int,
    requests: Sequence[Request],
    adapters: Sequence[Run],
    merged_models: Sequence[Run],
) -> tuple[_Turn, list[list[int]]]:
    """One turn of a way to serve, and its answers to mixed requests."""
    start = time.perf_counter()
    server = PATHS[name](adapters, merged_models)
    jax.block_until_ready(server.models)
    load = time.perf_counter() - start
    # the first time is no figure: its memory is new
    _, one = [
        deployment_paths.answer(server, requests, [0] * len(requests), arguments.rows)
        for _ in range(2)
    ]
    first_token = [dataclasses.replace(requests[0], new_tokens=1)]
    another = deployment_paths.answer(server, first_token, [1 % tasks], 1)
    by_turns = [number % tasks for number in range(len(requests))]
    mixed = deployment_paths.answer(server, requests, by_turns, arguments.rows)
    turn = _Turn(
        memory=float(deployment_paths.array_bytes(server)),
        load_seconds=load,
        another_task_seconds=another.seconds,
        one_seconds=one.seconds,
        mixed_seconds=mixed.seconds,
        latency_seconds=statistics.median(mixed.latencies),
        worst_latency_seconds=max(mixed.latencies),
    )
    return turn, mixed.tokens


def _requests(arguments: argparse.Namespace, run: Run) -> list[Request]:
    """Prompts of random tokens; answers have one length."""
    random, ids = np.random.default_rng(0), run.tokenizer.text_ids
    return [
        Request(
            prompt=[*run.tokenizer.opening, *random.choice(ids, arguments.prompt_tokens).tolist()],
            new_tokens=arguments.new_tokens,
            number=number,
        )
        for number in range(arguments.requests)
    ]


def _check_same(name: str, expected: list[list[int]], tokens: list[list[int]], dtype: str) -> None:
    """Says how far a way answers as the first one with so many tasks.

    Raises:
      RuntimeError: in float32, if first tokens differ.
    """
    pairs = [
        (a, b)
        for one, other in zip(expected, tokens, strict=True)
        for a, b in zip(one, other, strict=True)
    ]
    share = sum(a == b for a, b in pairs) / len(pairs)
    print(f"{name}: {share:.0%} of the tokens are the same", file=sys.stderr)
    starts = [[row[:SAME_TOKENS] for row in side] for side in (expected, tokens)]
    if dtype == "float32" and starts[0] != starts[1]:
        raise RuntimeError(f"{name} does not answer as {WHOLE} do ({starts})")


def _report(
    arguments: argparse.Namespace,
    turns: Mapping[Way, Sequence[_Turn]],
    sizes: Mapping[str, Sequence[int]],
    results: harness.Results,
) -> harness.Results:
    """Prints a line for each way, ratios taken within a round; returns the figures."""
    figures, lines = harness.Results(), []
    work = arguments.requests * arguments.new_tokens
    for (name, tasks), each in turns.items():
        whole = turns.get((WHOLE, tasks))
        each_task = sizes["model" if name == WHOLE else "adapter"]
        disk = 0.0 if name == WHOLE else float(sizes["base"][0])
        disk += sum(each_task[task % len(each_task)] for task in range(tasks))
        spreads = {
            field.name: harness.Spread.of([getattr(turn, field.name) for turn in each])
            for field in dataclasses.fields(_Turn)
        }
        one, mixed = [[turn.one_seconds] for turn in each], [[turn.mixed_seconds] for turn in each]
        spreads["one.tokens_per_second"] = harness.rate(work, one)
        spreads["mixed.tokens_per_second"] = harness.rate(work, mixed)
        spreads["mixed_over_one"] = harness.ratio(mixed, one)
        if whole and name != WHOLE:
            others = [[turn.mixed_seconds] for turn in whole]
            spreads["mixed_over_whole_models"] = harness.ratio(mixed, others)
        key = f"{name}.{tasks}"
        figures[f"{key}.disk"] = disk
        for stem, spread in spreads.items():
            figures |= spread.to_results(f"{key}.{stem}")
        label = name.replace("_", " ")
        lines.append({"way": label, "tasks": tasks, "disk": disk / MB} | _cells(spreads))
    print(
        f"{arguments.run}: {arguments.requests} requests of {arguments.prompt_tokens} + "
        f"{arguments.new_tokens} tokens at one time, {arguments.rows} rows; adapters: "
        f"{results['method']}, {len(sizes['adapter'])} of them in turn\n"
    )
    print(text_table(lines, COLUMNS))
    export, seconds = results.get("export.bytes"), results.get("export.seconds")
    if isinstance(export, float):
        print(
            f"\na merged export for transformers: {export / MB:,.1f} MB a task, written in "
            f"{seconds:.1f} s, read by graft convert in {results['export.load_seconds']:.1f} s; "
            f"merging into a run of Graft takes {results['merge.seconds']:.1f} s"
        )
    return figures


COLUMNS = [
    Column("way", "way"),
    Column("tasks", "tasks"),
    Column("disk", "on disk", "MB", format=",.1f"),
    Column("memory", "in memory", "MB", format=",.1f"),
    Column("load", "load", "s"),
    Column("another", "another task's first token", "s"),
    Column("one", "of one task", "tokens/s"),
    Column("mixed", "mixed", "tokens/s"),
    Column("share", "mixed over one"),
    Column("whole", "mixed over whole models"),
    Column("latency", "mixed, median latency", "s"),
    Column("worst", "worst", "s"),
]


def _cells(spreads: Mapping[str, harness.Spread]) -> dict[str, Any]:
    """The figures of a way as they are printed."""
    whole = spreads.get("mixed_over_whole_models")
    return {
        "memory": spreads["memory"].middle / MB,
        "load": f"{spreads['load_seconds']:.2f}",
        "another": f"{spreads['another_task_seconds']:.2f}",
        "one": f"{spreads['one.tokens_per_second']:.1f}",
        "mixed": f"{spreads['mixed.tokens_per_second']:.1f}",
        "share": f"{spreads['mixed_over_one']:.2f}",
        "whole": f"{whole:.2f}" if whole else None,
        "latency": f"{spreads['latency_seconds']:.2f}",
        "worst": f"{spreads['worst_latency_seconds']:.2f}",
    }


def _folder_bytes(run: Run) -> int:
    """Of a finished model alone, without other checkpoints of the run."""
    return deployment_paths.folder_bytes(Path(run.permanent_path))
