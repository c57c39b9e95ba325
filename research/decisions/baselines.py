"""Ways without a language model, beside every other: the majority, nearest neighbours, TF-IDF."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping

import numpy as np

from research.decisions.costs import BuildCost, RequestCost
from research.decisions.ladder import Measured
from research.decisions.metrics import score_text
from research.decisions.problem import Problem
from research.decisions.rungs.base import LeftOut
from research.evaluation.baselines import BASELINES
from research.evaluation.multiple_choice import MultipleChoice
from research.reports.statistics import score_interval

RUNG = "baseline"
NAMES: Mapping[str, str] = {
    "majority": "majority",
    "nearest_neighbour": "nearest neighbour",
    "tfidf_linear": "TF-IDF + linear",
}


def measure_baselines(problem: Problem) -> Iterator[Measured]:
    """Each baseline on the validation rows; one that fits no such answers is left out.

    Raises:
      LeftOut: none does.
    """
    train = problem.rows.train
    answers = {record["completion"] for record in train}
    has_own_options = isinstance(problem.task, MultipleChoice) and not problem.labels
    if has_own_options and 4 * len(answers) > len(train):  # letters are the same in all
        raise LeftOut("each question has options of its own: answers to others are none of them")
    for kind, name in NAMES.items():
        if not train or (kind == "tfidf_linear" and not 2 <= len(answers) <= len(train) / 2):
            continue
        yield measure_baseline(problem, kind, name, problem.screens)


def measure_baseline(problem: Problem, kind: str, name: str, splits: tuple[str, ...]) -> Measured:
    """A baseline on some splits of the rows."""
    train = problem.rows.train
    rows = [record for split in splits for record in problem.records(split)]
    with warnings.catch_warnings():  # that there are as many answers as rows
        warnings.simplefilter("ignore", UserWarning)
        predictions, cost = BASELINES[kind](
            [record["prompt"] for record in train],
            [record["completion"] for record in train],
            [record["prompt"] for record in rows],
        )
    pairs = zip(rows, predictions, strict=True)
    scores = np.asarray([score_text(problem.task, r, text, problem.metric) for r, text in pairs])
    names = [record["cluster"] for record in rows]
    return Measured(
        name=name,
        rung=RUNG,
        quality=score_interval(scores, np.asarray(names) if len(set(names)) < len(names) else None),
        scores=scores,
        request=RequestCost(
            seconds=cost["predict_seconds"] / len(rows), memory_bytes=cost["artifact_bytes"]
        ),
        build=BuildCost(
            labels=len(train),
            seconds=cost["fit_seconds"],
            trainable_parameters=cost["parameters"],
            artifact_bytes=cost["artifact_bytes"],
        ),
    )
