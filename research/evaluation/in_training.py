"""The tasks that a run is asked as it trains: an experiment's `evaluation`.

`graft train` gives `open_tasks` to the run's session. Everything that can be wrong is said before
anything is computed; then the same questions are asked of the run's model where it lies, with what
is attached to it, as often as the run says. Nothing of it touches what is trained.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

from research import sharding
from research.checkpoints.checkpoint import Checkpoint
from research.checkpoints.runs import Run
from research.config import schema
from research.data.pipeline import Pipeline
from research.evaluation.answer_cache import digest_questions
from research.evaluation.questions import digest
from research.evaluation.report import (
    EvaluationQuestions,
    ask,
    check_head,
    model_to_ask,
    read_evaluation,
)
from research.evaluation.results import TaskResult
from research.evaluation.tasks import Evaluation
from research.evaluation.training_overlap import check_questions
from research.experiment import Experiment
from research.generation.responders import Responder
from research.models.transformer import Transformer
from research.runtime import distributed
from research.runtime.storage import absolute
from research.sharding import MeshConfig
from research.training.program import Program

_WHERE = "config.evaluation"


@dataclasses.dataclass(frozen=True)
class RunInTraining(Run):
    """A run whose model is in memory, and whose files lie nowhere yet."""

    files: Mapping[str, bytes] = dataclasses.field(default_factory=dict)

    @property
    def sidecar_files(self) -> dict[str, bytes]:
        return dict(self.files)


@dataclasses.dataclass(frozen=True)
class TasksInTraining:
    """The tasks of a run, an `Evaluator`; made by `open_tasks`."""

    questions: EvaluationQuestions
    responder: Responder
    rows: Any  # the NamedSharding of batches
    metrics: tuple[str, ...]

    @functools.cached_property
    def keys(self) -> dict[str, str]:
        """Task, or `bits_per_byte` -> what identifies all that it asks."""
        return {
            name: digest([task.settings, task.key, digest_questions(self.questions.tasks[name])])
            for name, task in self.questions.evaluation.all_tasks.items()
        }

    def describe(self) -> str:
        """What is asked, and how many questions that are."""
        parts = []
        for name, task in self.questions.evaluation.all_tasks.items():
            what = "questions" if task.asks_questions else "texts"
            parts.append(f"{name}, {len(self.questions.tasks[name]):,} {what}")
        return "; ".join(parts)

    def __call__(self, model: Transformer) -> dict[str, float]:
        dtype = self.questions.evaluation.cache_dtype
        results = ask(model_to_ask(model, self.rows, self.responder, dtype), self.questions)
        return distributed.share_numbers(metrics_of(results))


def evaluation_of(experiment: Experiment) -> Evaluation | None:
    """What an experiment asks in training; None: nothing.

    Raises:
      ValueError: a key that an evaluation has not, with the nearest, or a value that does not fit.
    """
    if not experiment.evaluation:
        return None
    return schema.build(Evaluation, experiment.evaluation, _WHERE)


def open_tasks(program: Program, data: Pipeline) -> TasksInTraining:
    """Reads what the experiment of a program asks; see `research.training.evaluators`.

    Raises:
      ValueError: it cannot be asked of this run's model, or is trained on.
    """
    experiment = program.experiment
    evaluation = evaluation_of(experiment)
    assert evaluation is not None
    _check_fits(evaluation, program)
    try:
        questions = read_evaluation(evaluation, data.tokenizer)
    except ValueError as error:
        raise ValueError(f"{_WHERE}: {error}") from None
    base = program.base
    run = RunInTraining(
        checkpoint=Checkpoint(absolute("the run in training")),
        experiment=experiment,
        model=program.model_config,
        tokenizer=data.tokenizer,
        base=base,
        method=experiment.method,
        origin=base.origin if base else None,
        files=(base.sidecar_files if base else {}) | data.sidecar_files,
    )
    responder, names = Responder(run), []
    check_head(responder, questions)
    for name, task in evaluation.all_tasks.items():
        try:
            task.check_model(responder, questions.tasks[name])
        except ValueError as error:
            raise ValueError(f"{_WHERE}.{evaluation.path_of(name)}: {error}") from None
        names += [f"{name}/{metric}" for metric in task.metric_names(questions.tasks[name])]
    check_questions(_question_rows(questions), data, experiment.checks.overlap)
    return TasksInTraining(questions, responder, program.batch_sharding, tuple(names))


def metrics_of(results: Mapping[str, TaskResult]) -> dict[str, float]:
    """`TASK/METRIC` with its 95% interval (`_low`, `_high`), and `TASK/seconds`."""
    metrics = {}
    for task, result in results.items():
        for name, estimate in result.metrics.items():
            metrics[f"{task}/{name}"] = estimate.value
            metrics[f"{task}/{name}_low"] = estimate.low
            metrics[f"{task}/{name}_high"] = estimate.high
        metrics[f"{task}/seconds"] = result.seconds
    return metrics


def _check_fits(evaluation: Evaluation, program: Program) -> None:
    """Raises ValueError for what is asked of other models than that of a run in training."""
    if evaluation.mesh != MeshConfig():
        raise ValueError(f"{_WHERE}.mesh: the model is asked on the run's own mesh; leave it out")
    if program.experiment.method.bank_names:
        raise ValueError(
            f"{_WHERE}: a bank has an adapter for each row, and no model of its own to ask; "
            "measure its adapters with graft evaluate --adapter NAME"
        )
    shards = sharding.batch_shards(program.mesh, program.experiment.sharding_rules)
    for name, task in evaluation.all_tasks.items():
        if task.batch_size % shards:
            raise ValueError(
                f"{_WHERE}.{evaluation.path_of(name)}.batch_size {task.batch_size} does not divide "
                f"over {shards} devices of the run's mesh"
            )


def _question_rows(
    questions: EvaluationQuestions,
) -> dict[str, Sequence[tuple[int, Mapping[str, Any]]]]:
    """Path in the config -> row and record of each of its questions or texts."""
    evaluation = questions.evaluation
    return {
        f"{_WHERE}.{evaluation.path_of(name)}": [
            (each.row, task.trained_record(each)) for each in questions.tasks[name]
        ]
        for name, task in evaluation.all_tasks.items()
    }
