"""Steps of DPO and GRPO beside TRL's, on the same model, answers and references.

Both sides start from the same weights, with LoRA on every matrix, read the same prompts with the
same two answers to each, and know the reference's likelihoods beforehand; their first three losses
must agree before anything is timed. Graft has both answers in one row, TRL each in its own.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from research.benchmarks import harness
from research.benchmarks.shapes import SHAPES
from research.benchmarks.step import check_same

LOSSES = ("dpo", "ipo", "grpo")


class Answers(NamedTuple):
    """Prompts [N,P], two answers to each [N,2,A], and what each is worth [N,2]."""

    prompts: np.ndarray
    answers: np.ndarray
    advantages: np.ndarray


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shape", choices=SHAPES, default="smollm2")
    parser.add_argument("--losses", nargs="+", choices=LOSSES, default=("dpo", "grpo"))
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument(
        "--rounds", type=harness.positive, default=5, help="turns that everyone takes"
    )
    parser.add_argument("--seconds", type=float, default=6.0, help="length of a turn at least")
    parser.add_argument("--no-peer", action="store_true", help="Graft alone: needs no torch")


def main(arguments: argparse.Namespace) -> harness.Results:
    absent = [name for name in ("torch", "peft", "trl") if not find_spec(name)]
    if absent and not arguments.no_peer:
        raise SystemExit(
            f"{absent[0]} is not there: run tools/setup interop evaluate and "
            ".venv/evaluate/bin/python -m research.cli bench losses, or give --no-peer"
        )
    results: harness.Results = {"shape": arguments.shape, **harness.machine()}
    for loss in arguments.losses:
        results |= _case(arguments, loss)
    return results


def _case(arguments: argparse.Namespace, loss: str) -> harness.Results:
    """Graft and TRL in turns with one loss."""
    settings: dict[str, Any] = {
        "shape": arguments.shape, "loss": loss, "dtype": arguments.dtype, "method": "lora",
    }  # fmt: skip
    modules = {"graft": ("research.benchmarks.graft_losses", settings)}
    with tempfile.TemporaryDirectory() as folder:
        if not arguments.no_peer:
            settings["weights"] = str(Path(folder) / "weights.npz")
            modules["peer"] = ("research.benchmarks.trl_losses", settings)
        print(f"\n{loss} {arguments.dtype}", flush=True)
        with harness.contenders(modules) as ready:
            info = {contender.name: contender.info for contender in ready}
            if "peer" in info:
                check_same(info["graft"]["losses"], info["peer"]["losses"], arguments.dtype)
            times = harness.take_turns(ready, arguments.rounds, arguments.seconds)
            memory = {contender.name: contender.peak_memory() for contender in ready}
    results: harness.Results = {}
    count = 2 * SHAPES[arguments.shape].rows
    for name, seconds in times.items():
        speed = harness.rate(count, seconds)
        print(
            f"  {'Graft' if name == 'graft' else 'TRL  '}  {speed:.2f} answers/s, "
            f"{memory[name] / 2**30:.2f} GiB"
        )
        results |= speed.to_results(f"{loss}.{name}.answers_per_second")
        results[f"{loss}.{name}.peak_memory_bytes"] = memory[name]
    if "peer" in info:
        faster = harness.ratio(times["graft"], times["peer"])
        print(f"  Graft is {faster:.2f} times as fast", flush=True)
        results |= faster.to_results(f"{loss}.ratio")
        results |= {name: info["peer"][name] for name in ("torch", "trl")}
    return results


def answers(settings: Mapping[str, Any]) -> Answers:
    """Random tokens, the same for every side: a row of the shape holds both answers to a prompt."""
    shape = SHAPES[settings["shape"]]
    part = shape.length // 4
    random = np.random.default_rng(0)
    tokens = random.integers(0, shape.llama.vocabulary, (shape.rows, 3, part))
    advantages = random.normal(size=(shape.rows, 2)).astype(np.float32)
    return Answers(tokens[:, 0], tokens[:, 1:], advantages)
