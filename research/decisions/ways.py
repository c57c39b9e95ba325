"""Ways to answer a problem's questions: a model, and what it is asked."""

from __future__ import annotations

import dataclasses
from typing import Any

from research.checkpoints import runs
from research.decisions.costs import BuildCost
from research.decisions.problem import Problem
from research.decisions.templates import PromptTemplate, Shot
from research.evaluation.multiple_choice import MultipleChoice
from research.evaluation.question_task import QuestionTask
from research.generation.constraints import ConstraintConfig
from research.generation.responders import Responder
from research.retrieval import RetrievalConfig
from research.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Base:
    """A model that is asked or tuned."""

    # as tables call it, and its run's folder
    name: str
    path: str
    # whether its own template stands between question and answer, as that of messages does; else
    # it reads one text, in which an answer goes on from the question
    has_template: bool = False


@dataclasses.dataclass(frozen=True)
class Way:
    """A way to answer: which model is asked, and how."""

    # as tables call it; no two ways of a decision have one name
    name: str
    # the rung of the ladder that it stands on
    rung: str
    base: Base
    template: PromptTemplate
    shots: tuple[Shot, ...] = ()
    retrieval: RetrievalConfig | None = None
    constraint: ConstraintConfig | None = None
    workflow: tuple[Any, ...] = ()
    # what it takes before the first request, beside the rows that all ways are chosen by
    build: BuildCost = BuildCost()

    def task(self, problem: Problem, split: str, max_questions: int | None = None) -> QuestionTask:
        """What it is asked on a split of the rows, or on so many of them."""
        settings: dict[str, Any] = {"retrieval": self.retrieval, "max_questions": max_questions}
        if isinstance(problem.task, MultipleChoice):
            settings["delimiter"] = "" if self.base.has_template else self.template.delimiter
        else:
            settings |= {"constraint": self.constraint, "workflow": self.workflow}
        return problem.task_of(split, self.template.format(self.shots), **settings)


def open_base(path: str, name: str) -> tuple[Base, Tokenizer]:
    """A run as a base, and its tokenizer.

    Raises:
      FileNotFoundError: there is no such run.
      ValueError: it is a bank of adapters.
    """
    run = runs.open_run(path)
    if run.method.bank_names:
        raise ValueError(f"--base {path}: it is a bank of adapters; name a run of one")
    responder = Responder(run)
    objective = responder.objective
    has_template = responder.reads_conversations or bool(
        objective is not None and objective.has_completions
    )
    return Base(name, path, has_template), run.tokenizer
