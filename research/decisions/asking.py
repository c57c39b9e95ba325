"""Asks ways through the evaluation's own tasks and its cache of answers: nothing is asked twice."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

from research.checkpoints import runs
from research.checkpoints.runs import Run
from research.decisions.problem import Problem
from research.decisions.ways import Way
from research.evaluation.answer_cache import default_cache
from research.evaluation.generation_task import GenerationTask
from research.evaluation.question_task import LoadedModel
from research.evaluation.report import evaluate_run, loaded_model
from research.evaluation.results import Cost, TaskResult
from research.evaluation.tasks import Evaluation
from research.generation.responders import Responder


class Asker:
    """Asks the ways of one problem; one model at a time is in memory."""

    def __init__(self, problem: Problem, cache: Path | None = None):
        self._problem = problem
        self._cache = cache or default_cache()
        self._stack = contextlib.ExitStack()
        self._loaded: tuple[str, LoadedModel] | None = None

    def check(self, way: Way, splits: Sequence[str]) -> None:
        """Raises ValueError where the way's model cannot be asked these questions; loads none."""
        run = runs.open_run(way.base.path)
        for split in splits:
            task = way.task(self._problem, split)
            questions = task.retrieve(task.read(), run.tokenizer)
            responder = Responder(run)
            task.check_model(responder, questions)
            new_tokens = task.max_tokens if isinstance(task, GenerationTask) else 0
            longest = max(len(task.write(responder, each).ids) for each in questions) + new_tokens
            if longest > run.context_length:
                raise ValueError(
                    f"prompt and answer have up to {longest:,} tokens, and the model's window "
                    f"{run.context_length:,}"
                )

    def ask(self, way: Way, split: str, max_questions: int | None = None) -> TaskResult:
        """The answers on a split, or on so many of its rows; of the cache where they are there.

        Raises:
          ValueError: they cannot be asked.
        """
        run, name = runs.open_run(way.base.path), self._problem.name
        evaluation = Evaluation(tasks={name: way.task(self._problem, split, max_questions)})
        load = functools.partial(self._model, run)
        return evaluate_run(run, evaluation, cache=self._cache, load=load).tasks[name]

    def close(self) -> None:
        """Lets go of the model in memory."""
        self._loaded = None
        self._stack.close()

    @contextlib.contextmanager
    def _model(self, run: Run) -> Iterator[LoadedModel]:
        if self._loaded is None or self._loaded[0] != run.fingerprint:
            self.close()
            self._loaded = (run.fingerprint, self._stack.enter_context(loaded_model(run)))
        yield self._loaded[1]


def join_results(results: Sequence[TaskResult]) -> TaskResult:
    """The answers to several parts of the rows as one result."""
    first = results[0]
    return dataclasses.replace(
        first,
        answers=[answer for result in results for answer in result.answers],
        truncated=sum(result.truncated for result in results),
        seconds=sum(result.seconds for result in results),
        tokens_read=sum(result.tokens_read for result in results),
        cost=sum((result.cost for result in results), Cost()),
        steps=(),
        earlier=sum(result.earlier for result in results),
    )
