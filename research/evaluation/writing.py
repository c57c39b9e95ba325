"""Has a model answer prompts: several at a time, and under a constraint."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

from research.evaluation.passages import Prompt
from research.evaluation.question_task import LoadedModel, QuestionTask
from research.evaluation.questions import Question
from research.evaluation.samples import question_seed
from research.evaluation.workflows.base import Candidate, Step
from research.evaluation.workflows.run import Saying
from research.generation import decode
from research.generation.constraints import CompiledGrammar, Constraint, ConstraintConfig
from research.generation.decode import Completion
from research.generation.decoder import Request
from research.generation.responders import Responder, find_stops, tell_left_out
from research.generation.sampling import Sampling

# A candidate is asked fewer times: each has draws of its own.
_MAX_ATTEMPTS = 1 << 12


class AnsweredTask(QuestionTask):
    """What says how a task is answered in words; see `GenerationTask`."""

    max_tokens: int
    batch_size: int
    sampling: Sampling
    constraint: ConstraintConfig | None
    thoughts: tuple[str, str] | None
    workflow: Sequence[Step]


class Text(NamedTuple):
    """What a model says."""

    text: str
    new_tokens: int
    # whether it was stopped before its end
    is_cut: bool
    # why its constraint failed, which stopped it; empty: it did not
    failure: str = ""


class Draw(NamedTuple):
    """What an answer's draws depend on, and nothing else: not what is asked beside it."""

    # of the question in its split
    row: int
    # of the answer among those to the question
    number: int


class Writer:
    """A model that answers as a task says.

    Attributes:
      marks: of its thoughts.
    """

    def __init__(self, model: LoadedModel, task: AnsweredTask):
        self._model, self._task = model, task
        self._tokenizer = model.responder.run.tokenizer
        self._stops = _find_stops(task, model.responder)
        self.marks = model.responder.thought_marks(task.thoughts)
        self._left_out: set[str] = set()
        self._adapter = model.responder.number
        self._grammars: list[tuple[ConstraintConfig, CompiledGrammar]] = []

    def write(
        self,
        prompts: Sequence[list[int]],
        draws: Sequence[Draw],
        constraint: ConstraintConfig | None = None,
        max_tokens: int | None = None,
    ) -> list[Text]:
        """As `complete`, as texts."""
        answers = self.complete(prompts, draws, constraint, max_tokens)
        return [
            Text(self.decode(each.tokens), len(each.tokens), each.is_cut, each.failure)
            for each in answers
        ]

    def complete(
        self,
        prompts: Sequence[list[int]],
        draws: Sequence[Draw],
        constraint: ConstraintConfig | None = None,
        max_tokens: int | None = None,
    ) -> list[Completion]:
        """The answer to each prompt, with draws of its own.

        Args:
          constraint, max_tokens: None: those of the task.
        """
        task, ends = self._task, frozenset({self._tokenizer.end_id, *self._stops})
        constraint, limit = constraint or task.constraint, max_tokens or task.max_tokens
        requests = [
            Request(
                prompt=prompt,
                new_tokens=limit,
                ends=ends,
                sampling=dataclasses.replace(
                    task.sampling, seed=question_seed(task.sampling.seed, draw.row)
                ),
                number=draw.number,
                adapter=self._adapter,
                constraint=self._start(constraint, limit),
            )
            for prompt, draw in zip(prompts, draws, strict=True)
        ]
        model, dtype = self._model.model, self._model.cache_dtype
        answers = decode.complete(model, requests, task.batch_size, cache_dtype=dtype)
        tokens = [answer.tokens for answer in answers]
        self._left_out |= tell_left_out(self.marks, self._tokenizer, tokens, self._left_out)
        return answers

    def decode(self, ids: Sequence[int]) -> str:
        """The text of an answer, thoughts and their marks included."""
        return self.marks.decode(self._tokenizer, ids)

    def plain_text(self, text: str, prompt: Prompt) -> str:
        """What an answer to a prompt says after its thoughts."""
        return self.marks.without_thoughts(text, self.marks.are_open(self._tokenizer, prompt.ids))

    def say(
        self,
        questions: Sequence[Question],
        candidates: Sequence[Candidate],
        constraint: ConstraintConfig | None = None,
        max_tokens: int | None = None,
    ) -> list[Saying]:
        """What the model says in each candidate of a workflow; a draw depends on how often it was
        asked, too."""
        prompts, draws = [], []
        for candidate in candidates:
            question = questions[candidate.question]
            prompts.append(self._task.write(self._model.responder, question, candidate.turns))
            number = candidate.sample * _MAX_ATTEMPTS + candidate.attempts
            draws.append(Draw(question.row, number))
        texts = self.write([prompt.ids for prompt in prompts], draws, constraint, max_tokens)
        sayings = []
        for prompt, (text, count, is_cut, failure) in zip(prompts, texts, strict=True):
            plain_text = self.plain_text(text, prompt)
            sayings.append(Saying(text, plain_text, prompt, count, is_cut, failure))
        return sayings

    def _start(self, constraint: ConstraintConfig | None, limit: int) -> Constraint | None:
        if constraint is None:
            return None
        grammar = next((each for known, each in self._grammars if known is constraint), None)
        if grammar is None:
            size = self._model.model.config.vocabulary
            grammar = constraint.compile(self._tokenizer, self._stops, size)
            self._grammars.append((constraint, grammar))
        return grammar.start(limit)


def check_constraints(task: AnsweredTask, responder: Responder) -> None:
    """Raises ValueError where a constraint cannot be kept within the tokens of an answer."""
    stops, run = _find_stops(task, responder), responder.run
    limits = [step.limits for step in task.workflow if step.limits is not None]
    for constraint, max_tokens in limits or [(None, None)]:
        constraint = constraint or task.constraint
        if constraint is not None:
            grammar = constraint.compile(run.tokenizer, stops, run.model.vocabulary)
            grammar.start(max_tokens or task.max_tokens)


def _find_stops(task: AnsweredTask, responder: Responder) -> tuple[int, ...]:
    """Tokens besides end-of-text that end an answer."""
    stops = find_stops(responder.run, [responder])
    if task.objective is not None:
        stops += task.objective.stop_ids(responder.run.tokenizer)
    return stops
