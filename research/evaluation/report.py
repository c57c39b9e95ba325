"""A whole evaluation of one model: its tasks scored, as numbers and answers row by row."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from research import sharding
from research.adapters import banks
from research.batch import Batch
from research.checkpoints import runs
from research.checkpoints.runs import Run
from research.evaluation import tasks
from research.evaluation.answer_cache import AnswerCache, key_of, open_cache
from research.evaluation.question_task import LoadedModel
from research.evaluation.questions import Question
from research.evaluation.results import Part, TaskResult, answer_count
from research.evaluation.text_task import bits_per_byte
from research.evaluation.training_overlap import read_training_questions
from research.generation.responders import Responder
from research.models.cache import CacheKind
from research.text.tokenizer import Tokenizer
from research.training.heldout_loss import make_losses, make_outputs, make_score

# what results are broken down by, where questions stand in what the run was tuned on
IN_TRAINING = "in training"


@dataclasses.dataclass(frozen=True)
class Report:
    """What an evaluation found."""

    # task -> its answers
    tasks: Mapping[str, TaskResult] = dataclasses.field(default_factory=dict)
    # what is known of questions that the run was tuned on, a line a task
    training_overlap: Sequence[str] = ()

    @property
    def bits_per_byte(self) -> dict[str, float]:
        """Source -> of the text that the config's `text` asks for; empty: nothing."""
        text = self.tasks.get(tasks.TEXT)
        bits = {} if text is None or not text.is_text else bits_per_byte(text)
        return {name: estimate.value for name, estimate in bits.items()}

    def to_dict(self) -> dict[str, Any]:
        """What `graft evaluate --out` writes, with the answer to every question."""
        content: dict[str, Any] = {}
        if self.training_overlap:
            content["training_overlap"] = list(self.training_overlap)
        content["tasks"] = {name: result.to_dict() for name, result in self.tasks.items()}
        return content


def evaluate_run(
    run: Run,
    evaluation: tasks.Evaluation,
    adapter: str | None = None,
    cache: Path | None = None,
    is_fresh: bool = False,
    looks_for_training: bool = False,
    load: Callable[[], contextlib.AbstractContextManager[LoadedModel]] | None = None,
) -> Report:
    """Scores a model on the tasks of an evaluation.

    Args:
      adapter: of a bank: which adapter all rows use.
      cache: folder in which answers are kept as they are made, and looked up first; one process
        alone does so. None: all are asked.
      is_fresh: whether those that are there are asked again.
      looks_for_training: whether questions are looked for in what the run was tuned on.
      load: context with the model, where it is in memory already; None: it is loaded, unless the
        cache has all answers.

    Raises:
      ValueError: no task, a bank without a name, or what one process alone can ask.
    """
    _check_adapter(run, adapter)
    questions = read_evaluation(evaluation, run.tokenizer)
    check_head(Responder(run, adapter or ""), questions)
    all_tasks = evaluation.all_tasks
    caches: dict[str, AnswerCache] = {}
    if cache is not None and jax.process_count() == 1:
        for name, task in all_tasks.items():
            key = key_of(run, adapter, evaluation, task, questions.tasks[name])
            caches[name] = open_cache(cache, key, name, is_fresh)
    earlier = {name: answers.read() for name, answers in caches.items()}
    results = {
        name: all_tasks[name].result(questions.tasks[name], parts)
        for name, parts in earlier.items()
        if answer_count(parts) == len(questions.tasks[name])
    }
    if remaining := [name for name in all_tasks if name not in results]:
        mesh, dtype = evaluation.mesh, evaluation.cache_dtype
        load = load or functools.partial(loaded_model, run, adapter, mesh, dtype)
        with load() as model:
            results |= ask(model, questions, remaining, caches, earlier)
    for name, task in all_tasks.items():
        settings = {**results[name].settings}
        if task.is_written and evaluation.cache_dtype:
            settings["cache_dtype"] = evaluation.cache_dtype
        count = answer_count(earlier.get(name, ()))
        results[name] = dataclasses.replace(results[name], settings=settings, earlier=count)
    report = Report({name: results[name] for name in all_tasks})
    return _with_overlap(report, questions, run) if looks_for_training else report


def _with_overlap(report: Report, questions: EvaluationQuestions, run: Run) -> Report:
    """The report with what is known of questions that the run was tuned on."""
    training = read_training_questions(run)
    lines, results = [], dict(report.tasks)
    for name, task in questions.evaluation.all_tasks.items():
        if not task.asks_questions:
            continue
        is_trained, examples = training.find(questions.tasks[name])
        if not is_trained.any():
            continue
        lines.append(
            f"{name}: {is_trained.sum():,} of {len(is_trained):,} questions stand in what the run "
            f"was tuned on ({examples})"
        )
        words = np.where(is_trained, "yes", "no").tolist()
        answers = [
            dataclasses.replace(answer, fields={**answer.fields, IN_TRAINING: word})
            for answer, word in zip(results[name].answers, words, strict=True)
        ]
        results[name] = dataclasses.replace(results[name], answers=answers)
    lines += [
        f"whether questions stand in {each} is not known: it cannot be read here"
        for each in training.unread
    ]
    return Report(results, lines)


@dataclasses.dataclass(frozen=True)
class EvaluationQuestions:
    """What an evaluation asks, read and checked; any model of the tokenizer can be asked it."""

    evaluation: tasks.Evaluation
    # task -> its questions, with what is retrieved for each
    tasks: Mapping[str, Sequence[Question]]


def read_evaluation(evaluation: tasks.Evaluation, tokenizer: Tokenizer) -> EvaluationQuestions:
    """Reads what an evaluation asks, before any model is asked.

    Raises:
      ValueError: nothing is asked, what one process alone can ask is asked by several, or
        questions that cannot be asked or scored.
    """
    all_tasks = evaluation.all_tasks
    if not all_tasks:
        raise ValueError("the config has neither `text`, `choice` nor `tasks`: nothing to measure")
    alone = [name for name, task in all_tasks.items() if not task.is_shared]
    if alone and jax.process_count() > 1:
        raise ValueError(
            "retrieval, and checks of a workflow that run code, are of one process: leave "
            f"--distributed out, or of `tasks`: {', '.join(alone)}"
        )
    if evaluation.cache_dtype and not any(task.is_written for task in all_tasks.values()):
        raise ValueError(
            f"cache_dtype {evaluation.cache_dtype}: nothing that is asked is answered in words, so "
            "that nothing is stored: leave it out"
        )
    questions = {}
    for name, task in all_tasks.items():
        try:
            questions[name] = task.prepare(tokenizer)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    return EvaluationQuestions(evaluation, questions)


def check_head(responder: Responder, questions: EvaluationQuestions) -> None:
    """Refuses to ask a head for classes or a number what is answered in tokens, and the other way.

    Raises:
      ValueError: names what is asked.
    """
    run = responder.run
    has_head = run.method.head_outputs > 0
    for name, task in questions.evaluation.all_tasks.items():
        if task.asks_head and not has_head:
            raise ValueError(
                f"{name}: {run.path} has no head for classes or numbers: it is tuned with method "
                'classifier (docs/guides/classify.md); ask this one with kind="multiple_choice"'
            )
        if has_head and not task.asks_head:
            raise ValueError(
                f"{name}: {run.path} says classes or a number by a head of its own, and no tokens: "
                'ask it with kind="classification" or kind="regression" (docs/guides/classify.md)'
            )
        if task.asks_head:
            try:
                task.check_model(responder, questions.tasks[name])
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None


def ask(
    model: LoadedModel,
    questions: EvaluationQuestions,
    names: Collection[str] | None = None,
    caches: Mapping[str, AnswerCache] | None = None,
    earlier: Mapping[str, Sequence[Part]] | None = None,
) -> dict[str, TaskResult]:
    """Asks a model, in the context of its mesh; task -> its answers.

    Args:
      names: of the tasks that are asked; None: all.
      caches: task -> where its answers are kept as they are made.
      earlier: task -> what of it was answered before.
    """
    caches, earlier = caches or {}, earlier or {}
    results = {}
    for name, task in questions.evaluation.all_tasks.items():
        if names is None or name in names:
            keep = caches[name].add if name in caches else None
            parts = earlier.get(name, ())
            results[name] = task.answer(model, questions.tasks[name], name, parts, keep)
    return results


@contextlib.contextmanager
def loaded_model(
    run: Run,
    adapter: str | None = None,
    mesh: sharding.MeshConfig | None = None,
    cache_dtype: CacheKind | None = None,
) -> Iterator[LoadedModel]:
    """Context with the model of a run, loaded onto all devices.

    Args:
      adapter: which of a bank's adapters all rows use.
      mesh: how all devices are arranged; None: each has the whole model.
      cache_dtype: as of `LoadedModel`.

    Raises:
      ValueError: a bank without a name, or a name that there is not.
    """
    _check_adapter(run, adapter)
    adapter_number = banks.adapter_number(run.method, adapter)
    number = adapter_number if run.method.bank_names else None

    devices, rules = (mesh or sharding.MeshConfig()).make(), sharding.RULES
    with sharding.mesh_context(devices, rules):
        model = runs.load_model(run, devices, rules)
        batch_rows = sharding.batch_sharding(devices, rules)
        responder = Responder(run, adapter or "", number)
        yield model_to_ask(model, batch_rows, responder, cache_dtype)


def model_to_ask(
    model: Any,
    rows: jax.sharding.NamedSharding,
    responder: Responder,
    cache_dtype: CacheKind | None = None,
) -> LoadedModel:
    """A model in memory, to be asked in the context of its mesh.

    Args:
      rows: where batches lie.
      responder: the run that it is of; of a bank, which adapter all rows use.
      cache_dtype: as of `LoadedModel`.
    """
    score, losses, number = make_score(model, rows), make_losses(model, rows), responder.number

    def with_adapter(batch: Batch) -> Batch:
        if number is None:
            return batch
        adapters = np.full(len(batch.tokens), number, np.int32)
        return dataclasses.replace(batch, adapter=adapters)

    return LoadedModel(
        model,
        lambda batch: score(with_adapter(batch)),
        lambda batch: losses(with_adapter(batch)),
        make_outputs(model, rows),
        responder,
        cache_dtype,
    )


def _check_adapter(run: Run, adapter: str | None) -> None:
    """Raises ValueError unless an adapter is named where the run is a bank, and only there."""
    bank = run.method.bank_names
    if bool(bank) != (adapter is not None):
        available = ", ".join(bank) or "none"
        raise ValueError(f"--adapter names one of a bank's adapters; {run.path} has {available}")
