"""Ways to answer that train no weights: prompts with worked examples, and plain classifiers.

They stand in a study's table beside tuned models, on the same labels and the same questions.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from research.checkpoints import runs
from research.config import paths
from research.data.sources import open_source
from research.evaluation.baselines import BASELINES
from research.evaluation.choice_task import ChoiceTask
from research.evaluation.report import Report, evaluate_run
from research.evaluation.tasks import Evaluation
from research.experiment import Experiment
from research.reports.statistics import proportion_interval
from research.studies.study import PROMPTED, TUNED


def evaluation_of(
    way: str, evaluation: Evaluation | None, experiment: Experiment, changes: Mapping[str, Any]
) -> Evaluation | None:
    """What a form of this way is asked; None: it is not evaluated.

    A way that trains nothing takes its labels from the run's first source, and draws worked
    examples by the run's seed; texts are not asked, as no weights change.

    Raises:
      ValueError: it trains nothing, and the evaluation asks no questions.
    """
    if evaluation is None:
        if way != TUNED:
            raise ValueError(f"a form is {way}, but nothing is evaluated")
        return None
    task = paths.replace(evaluation, changes) if changes else evaluation
    if way == TUNED:
        return task
    if task.choice is None:
        raise ValueError(f"a form is {way}, but the evaluation asks no questions: give it `choice`")
    # after the changes: its labels are the run's, however few and however wrong
    choice = dataclasses.replace(
        task.choice, source=experiment.data.sources[0], seed=experiment.seed
    )
    return dataclasses.replace(task, text=None, choice=choice)


def answer(way: str, evaluation: Evaluation, experiment: Experiment) -> tuple[Report | None, dict]:
    """Answers the questions; (what was found by a model, the columns of the row).

    Raises:
      ValueError, FileNotFoundError: the base or the labels do not fit.
    """
    assert evaluation.choice is not None  # `evaluation_of` has seen to it
    start = time.perf_counter()
    if way == PROMPTED:
        base = runs.open_run(experiment.init_from or "")
        report = evaluate_run(base, evaluation)
        costs = {"labels": evaluation.choice.shots, "trainable_parameters": 0, "flops": 0.0}
        return report, costs | {
            "artifact_bytes": 0,
            "seconds": 0.0,
            "answer_seconds": time.perf_counter() - start,
        }
    return None, _classify(way, evaluation.choice)


def _classify(way: str, task: ChoiceTask) -> dict[str, Any]:
    """A classifier fitted on the training split, asked what models are asked."""
    train = open_source(task.source)
    examples = [train[row] for row in range(len(train))]
    questions = [question.record for question in task.read()]
    labels = [example["completion"] for example in examples]
    known = way if len(set(labels)) > 1 else "majority"  # all that one label tells
    predictions, cost = BASELINES[known](
        [example["prompt"] for example in examples],
        labels,
        [question["prompt"] for question in questions],
    )
    correct = [
        question["completion"] == prediction
        for question, prediction in zip(questions, predictions, strict=True)
    ]
    groups = [int(each["cluster"]) for each in questions] if "cluster" in questions[0] else None
    quality = proportion_interval(np.asarray(correct), groups=groups and np.asarray(groups))
    columns: dict[str, Any] = {
        "labels": len(examples),
        "trainable_parameters": cost["parameters"],
        "artifact_bytes": cost["artifact_bytes"],
        "seconds": cost["fit_seconds"],
        "answer_seconds": cost["predict_seconds"],
        "quality": quality.value,
        "quality_low": quality.low,
        "quality_high": quality.high,
        "questions": quality.n,
        "correct": correct,
    }
    return columns | ({} if groups is None else {"groups": groups})
