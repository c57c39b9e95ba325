"""A whole evaluation of one model: its tasks scored, as numbers and answers row by row."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from research.evaluation.questions import Question, question_of
from research.evaluation.results import Cost, Part, TaskResult, answer_count
from research.evaluation.training_overlap import read_training_questions
from research.generation.responders import Responder
from research.models.cache import CacheKind
from research.reports.statistics import Estimate, proportion_interval
from research.text.tokenizer import Tokenizer
from research.training.heldout_loss import Score, make_losses, make_outputs, make_score

# what results are broken down by, where questions stand in what the run was tuned on
IN_TRAINING = "in training"


@dataclasses.dataclass(frozen=True)
class Report:
    """What an evaluation found."""

    # source -> bits per byte of its held-out text; None: not asked
    bits_per_byte: dict[str, float] | None
    answers: tasks.Answers | None
    # task -> its answers
    results: Mapping[str, TaskResult] = dataclasses.field(default_factory=dict)
    # source -> what its bits per byte cost, by name
    text_costs: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)
    # what is known of questions that the run was tuned on, a line a task
    training_overlap: Sequence[str] = ()

    @property
    def tasks(self) -> dict[str, TaskResult]:
        """Every task that has answers; the one that chooses among labels is called `choice`."""
        choice = {} if self.answers is None else {"choice": self.answers.result}
        return choice | dict(self.results)

    @property
    def quality(self) -> Estimate | None:
        """The share of right answers, by near-duplicate groups where there are some."""
        if self.answers is None:
            return None
        return proportion_interval(self.answers.correct, groups=self.answers.groups)

    def to_dict(self) -> dict[str, Any]:
        """What `graft evaluate --out` writes, with the answer to every question."""
        content: dict[str, Any] = {}
        if self.bits_per_byte is not None:
            content["bits_per_byte"] = self.bits_per_byte
            content["text_costs"] = self.text_costs
        if self.training_overlap:
            content["training_overlap"] = list(self.training_overlap)
        if self.answers is not None and self.quality is not None:
            content["quality"] = dataclasses.asdict(self.quality)
            content["truncated"] = self.answers.truncated
        if self.tasks:
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
      cache: folder in which answers to `tasks` are kept as they are made, and looked up first; one
        process alone does so. None: all are asked.
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
    caches: dict[str, AnswerCache] = {}
    if cache is not None and jax.process_count() == 1:
        for name, task in evaluation.tasks.items():
            key = key_of(run, adapter, evaluation, task, questions.tasks[name])
            caches[name] = open_cache(cache, key, name, is_fresh)
    earlier = {name: answers.read() for name, answers in caches.items()}
    results = {
        name: evaluation.tasks[name].result(questions.tasks[name], parts)
        for name, parts in earlier.items()
        if answer_count(parts) == len(questions.tasks[name])
    }
    remaining = {name: each for name, each in evaluation.tasks.items() if name not in results}
    report = Report(None, None)
    if remaining or evaluation.text is not None or evaluation.choice is not None:
        rest = dataclasses.replace(evaluation, tasks=remaining)
        mesh, dtype = evaluation.mesh, evaluation.cache_dtype
        load = load or functools.partial(loaded_model, run, adapter, mesh, dtype)
        with load() as model:
            report = ask(model, dataclasses.replace(questions, evaluation=rest), caches, earlier)
    results |= report.results
    for name, task in evaluation.tasks.items():
        settings = {**results[name].settings}
        if task.is_written and evaluation.cache_dtype:
            settings["cache_dtype"] = evaluation.cache_dtype
        count = answer_count(earlier.get(name, ()))
        results[name] = dataclasses.replace(results[name], settings=settings, earlier=count)
    report = dataclasses.replace(report, results={name: results[name] for name in evaluation.tasks})
    return _with_overlap(report, questions, run) if looks_for_training else report


def _with_overlap(report: Report, questions: EvaluationQuestions, run: Run) -> Report:
    """The report with what is known of questions that the run was tuned on."""
    training = read_training_questions(run)
    by_task: dict[str, Sequence[Question]] = dict(questions.tasks)
    if (choice := questions.choice) is not None:
        by_task["choice"] = [question_of(row, n, "choice") for n, row in enumerate(choice.rows)]
    lines, results = [], dict(report.results)
    for name, each in by_task.items():
        is_trained, examples = training.find(each)
        if not is_trained.any():
            continue
        lines.append(
            f"{name}: {is_trained.sum():,} of {len(each):,} questions stand in what the run was "
            f"tuned on ({examples})"
        )
        if name in results:
            answers = [
                dataclasses.replace(answer, fields={**answer.fields, IN_TRAINING: word})
                for answer, word in zip(
                    results[name].answers, np.where(is_trained, "yes", "no").tolist(), strict=True
                )
            ]
            results[name] = dataclasses.replace(results[name], answers=answers)
    lines += [
        f"whether questions stand in {each} is not known: it cannot be read here"
        for each in training.unread
    ]
    return dataclasses.replace(report, results=results, training_overlap=lines)


@dataclasses.dataclass(frozen=True)
class EvaluationQuestions:
    """What an evaluation asks, read and checked; any model of the tokenizer can be asked it."""

    evaluation: tasks.Evaluation
    tokenizer: Tokenizer
    choice: tasks.ChoiceQuestions | None
    # task -> its questions, with what is retrieved for each
    tasks: Mapping[str, Sequence[Question]]


def read_evaluation(evaluation: tasks.Evaluation, tokenizer: Tokenizer) -> EvaluationQuestions:
    """Reads what an evaluation asks, before any model is asked.

    Raises:
      ValueError: nothing is asked, what one process alone can ask is asked by several, or
        questions that cannot be asked or scored.
    """
    if evaluation.text is None and evaluation.choice is None and not evaluation.tasks:
        raise ValueError("the config has neither `text`, `choice` nor `tasks`: nothing to measure")
    alone = [name for name, task in evaluation.tasks.items() if not task.is_shared]
    if alone and jax.process_count() > 1:
        raise ValueError(
            "retrieval, and checks of a workflow that run code, are of one process: leave "
            f"--distributed out, or of `tasks`: {', '.join(alone)}"
        )
    if evaluation.cache_dtype and not any(task.is_written for task in evaluation.tasks.values()):
        raise ValueError(
            f"cache_dtype {evaluation.cache_dtype}: nothing that is asked is answered in words, so "
            "that nothing is stored: leave it out"
        )
    questions = {}
    for name, task in evaluation.tasks.items():
        try:
            questions[name] = task.retrieve(task.read(), tokenizer)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    choice = None
    if evaluation.choice is not None:
        choice = tasks.read_choice(evaluation.choice, tokenizer)
    return EvaluationQuestions(evaluation, tokenizer, choice, questions)


def check_head(responder: Responder, questions: EvaluationQuestions) -> None:
    """Refuses to ask a head for classes or a number what is answered in tokens, and the other way.

    Raises:
      ValueError: names what is asked.
    """
    evaluation, run = questions.evaluation, responder.run
    has_head = run.method.head_outputs > 0
    asks_head = {name: task.asks_head for name, task in evaluation.tasks.items()}
    asks_head |= {name: False for name in ("text", "choice") if getattr(evaluation, name)}
    for name, of_head in asks_head.items():
        if of_head and not has_head:
            raise ValueError(
                f"{name}: {run.path} has no head for classes or numbers: it is tuned with method "
                'classifier (docs/guides/classify.md); ask this one with kind="multiple_choice"'
            )
        if has_head and not of_head:
            raise ValueError(
                f"{name}: {run.path} says classes or a number by a head of its own, and no tokens: "
                'ask it with kind="classification" or kind="regression" (docs/guides/classify.md)'
            )
        if of_head:
            try:
                evaluation.tasks[name].check_model(responder, questions.tasks[name])
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None


def ask(
    model: LoadedModel,
    questions: EvaluationQuestions,
    caches: Mapping[str, AnswerCache] | None = None,
    earlier: Mapping[str, Sequence[Part]] | None = None,
) -> Report:
    """Asks a model, in the context of its mesh.

    Args:
      caches: task -> where its answers are kept as they are made.
      earlier: task -> what of it was answered before.
    """
    evaluation, caches, earlier = questions.evaluation, caches or {}, earlier or {}
    bits_per_byte, answers = None, None
    results: dict[str, TaskResult] = {}
    text_costs: dict[str, dict[str, float]] = {}
    if evaluation.text is not None:
        text = tasks.score_text(model.score, evaluation.text, questions.tokenizer, model.flops)
        bits_per_byte = {name: scores.bits_per_byte for name, scores in text.items()}
        text_costs = {
            name: {part: getattr(scores, part) for part in ("tokens", "seconds", "flops")}
            | {"weight_bytes": model.weight_bytes}
            for name, scores in text.items()
        }
    if questions.choice is not None:
        answers = tasks.answer_choice(model.score, questions.choice)
        cost = Cost(questions.choice.flops(model.flops), model.weight_bytes)
        answers = dataclasses.replace(answers, cost=cost)
    for name, task in evaluation.tasks.items():
        keep = caches[name].add if name in caches else None
        parts = earlier.get(name, ())
        results[name] = task.answer(model, questions.tasks[name], name, parts, keep)
    return Report(bits_per_byte, answers, results, text_costs)


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


@contextlib.contextmanager
def scorer(
    run: Run, adapter: str | None = None, mesh: sharding.MeshConfig | None = None
) -> Iterator[Score]:
    """Context with the scoring function of a run alone; see `loaded_model`."""
    with loaded_model(run, adapter, mesh) as model:
        yield model.score


def _check_adapter(run: Run, adapter: str | None) -> None:
    """Raises ValueError unless an adapter is named where the run is a bank, and only there."""
    bank = run.method.bank_names
    if bool(bank) != (adapter is not None):
        available = ", ".join(bank) or "none"
        raise ValueError(f"--adapter names one of a bank's adapters; {run.path} has {available}")
