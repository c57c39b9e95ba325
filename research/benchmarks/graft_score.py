"""A contender: Graft's scoring of answers, a question and all its answers in one row."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import jax

from research import sharding
from research.benchmarks.graft_generate import make_model
from research.benchmarks.score import texts
from research.evaluation import scoring
from research.runtime.memory import peak_memory_bytes
from research.training.heldout_loss import make_score

# what the harness asks for
peak_memory = peak_memory_bytes


def prepare(settings: Mapping[str, Any]):
    """A contender, see `research.benchmarks.harness`.

    Args:
      settings: as of `research.benchmarks.score`; weights, a file to write them to.
    """
    mesh, rules = sharding.one_device()
    questions, answers = (part.tolist() for part in texts(settings))
    scores: list[list[float]] = []
    with sharding.mesh_context(mesh, rules):
        model = make_model(settings)
        score = make_score(model, sharding.batch_sharding(mesh, rules))

    def run() -> float:
        start = time.perf_counter()
        with sharding.mesh_context(mesh, rules):
            options = [answers] * len(questions)
            # as kind="choice" asks
            parts = scoring.score_in_batches(
                score, questions, options, settings["rows"], is_one_length=True
            )
            every = {number: each for part in parts for number, each in part.items()}
        scores[:] = [every[number].tolist() for number in range(len(questions))]
        return time.perf_counter() - start

    run()
    return {"scores": list(scores), "jax": jax.__version__}, run
