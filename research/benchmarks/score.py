"""Choosing among answers beside transformers, which computes a question's cache once.

Both sides have the same weights, questions and answers and add up the log-likelihoods of each
answer's tokens; in float32 these must be the same before anything is timed. The peer computes a
batch of questions, repeats their keys and values for the answers, and computes those.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from research.benchmarks import harness
from research.benchmarks.shapes import SHAPES

# Nats by which the two sides may differ in an answer of a few tokens, in float32: sums of as many
# products as a model is wide, over its layers.
SAME_NATS = 2e-2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shape", choices=SHAPES, default="smollm2")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--questions", type=harness.positive, default=200)
    parser.add_argument("--answers", type=harness.positive, default=5, help="of each question")
    parser.add_argument("--question-tokens", type=harness.positive, default=64)
    parser.add_argument("--answer-tokens", type=harness.positive, default=4)
    parser.add_argument("--rows", type=harness.positive, default=16, help="questions of a batch")
    parser.add_argument(
        "--rounds", type=harness.positive, default=3, help="turns that everyone takes"
    )
    parser.add_argument("--seconds", type=float, default=4.0, help="length of a turn at least")
    parser.add_argument("--no-peer", action="store_true", help="Graft alone: needs no torch")


def main(arguments: argparse.Namespace) -> harness.Results:
    absent = [name for name in ("torch", "transformers") if not find_spec(name)]
    if absent and not arguments.no_peer:
        raise SystemExit(f"{absent[0]} is not there: run tools/setup interop, or give --no-peer")
    names = ("shape", "dtype", "questions", "answers", "question_tokens", "answer_tokens", "rows")
    settings: dict[str, Any] = {name: getattr(arguments, name) for name in names}
    modules = {"graft": ("research.benchmarks.graft_score", settings)}
    with tempfile.TemporaryDirectory() as folder:
        if not arguments.no_peer:
            settings["weights"] = str(Path(folder) / "weights.npz")
            modules["peer"] = ("research.benchmarks.torch_score", settings)
        with harness.contenders(modules) as ready:
            info = {contender.name: contender.info for contender in ready}
            if "peer" in info:
                _check_same(info["graft"]["scores"], info["peer"]["scores"], arguments.dtype)
            times = harness.take_turns(ready, arguments.rounds, arguments.seconds)
    print(
        f"{arguments.shape}, {arguments.dtype}: {arguments.questions} questions of "
        f"{arguments.question_tokens} tokens, {arguments.answers} answers of "
        f"{arguments.answer_tokens} to each"
    )
    results: harness.Results = {**settings, **harness.machine()}
    results.pop("weights", None)
    for name in times:
        speed = harness.rate(arguments.questions, times[name])
        print(f"  {'Graft' if name == 'graft' else 'peer ':5}  {speed:.2f} questions/s")
        results |= speed.to_results(f"{name}.questions_per_second")
    if "peer" in info:
        faster = harness.ratio(times["graft"], times["peer"])
        print(f"  Graft is {faster:.2f} times as fast")
        results |= faster.to_results("ratio")
        results |= {name: info["peer"][name] for name in ("torch", "transformers")}
    return results


def texts(settings: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Questions [N,S] and answers [C,A] of random tokens, the same for every side."""
    vocabulary = SHAPES[settings["shape"]].llama.vocabulary
    random = np.random.default_rng(0)
    questions = settings["questions"], settings["question_tokens"]
    answers = settings["answers"], settings["answer_tokens"]
    return random.integers(1, vocabulary, questions), random.integers(1, vocabulary, answers)


def _check_same(graft: list[list[float]], peer: list[list[float]], dtype: str) -> None:
    """Says how far the sides' scores are the same.

    Raises:
      RuntimeError: in float32, if they are not.
    """
    one, other = np.asarray(graft), np.asarray(peer)
    error = float(np.abs(one - other).max())
    share = float(np.mean(one.argmax(axis=1) == other.argmax(axis=1)))
    print(f"{share:.0%} of the choices are the same; scores differ by {error:.2g} nats at most")
    if dtype == "float32" and error > SAME_NATS:
        raise RuntimeError(f"{dtype}: the two sides do not score the same ({error:.2g} nats)")
