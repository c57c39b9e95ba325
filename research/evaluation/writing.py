"""Has a model answer prompts: several at a time, and under a constraint."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from research.evaluation.question_task import LoadedModel, QuestionTask
from research.evaluation.questions import Question
from research.evaluation.samples import question_seed
from research.evaluation.thoughts import opens_thoughts, without_thoughts
from research.evaluation.workflows.base import Candidate, Step
from research.evaluation.workflows.run import Saying
from research.generation import decode
from research.generation.constraints import CompiledGrammar, Constraint, ConstraintConfig
from research.generation.decoder import Decoder, Request
from research.generation.responders import Responder, find_stops
from research.generation.sampling import Sampling

# A candidate is asked fewer times: each has draws of its own.
_MAX_ATTEMPTS = 1 << 12


class AnsweredTask(QuestionTask):
    """What says how a task is answered in words; see `GenerationTask`."""

    max_tokens: int
    batch_size: int
    sampling: Sampling
    constraint: ConstraintConfig | None
    workflow: Sequence[Step]

    @property
    def rows(self) -> int:
        """Answers that are written at a time."""
        raise NotImplementedError


class Text(NamedTuple):
    """What a model says."""

    text: str
    new_tokens: int
    # whether it was stopped before its end
    is_cut: bool


class Writer:
    """A model that answers as a task says."""

    def __init__(self, model: LoadedModel, task: AnsweredTask):
        self._model, self._task = model, task
        self._tokenizer = model.responder.run.tokenizer
        self._stops = _find_stops(task, model.responder)
        self._adapter = model.responder.number
        self._grammars: list[tuple[ConstraintConfig, CompiledGrammar]] = []

    def write(self, prompts: Sequence[list[int]], sampling: Sampling) -> list[Text]:
        """The answer to each prompt."""
        task = self._task
        adapters = None
        if self._adapter is not None:
            adapters = np.full(len(prompts), self._adapter, np.int32)
        constraints = [self._start(task.constraint, task.max_tokens) for _ in prompts]
        answers = decode.generate(
            self._model.model,
            prompts,
            task.max_tokens,
            self._tokenizer.end_id,
            sampling,
            adapters,
            self._stops,
            constraints=constraints,
            rows=task.rows,
        )
        pairs = zip(answers, constraints, strict=True)
        return [self._read(ids, task.max_tokens, constraint) for ids, constraint in pairs]

    def say(
        self,
        questions: Sequence[Question],
        candidates: Sequence[Candidate],
        constraint: ConstraintConfig | None = None,
        max_tokens: int | None = None,
    ) -> list[Saying]:
        """What the model says in each candidate of a workflow.

        A draw depends on the question, by its row in the split, on the candidate's number, and on
        how often it was asked; not on what else is.

        Args:
          constraint, max_tokens: None: those of the task.
        """
        task, ends = self._task, frozenset({self._tokenizer.end_id, *self._stops})
        constraint, limit = constraint or task.constraint, max_tokens or task.max_tokens
        decoder = Decoder(self._model.model, task.batch_size, self._adapter is not None)
        prompts, rows, tickets = [], [], {}
        for candidate in candidates:
            question = questions[candidate.question]
            prompts.append(task.write(self._model.responder, question, candidate.turns))
            rows.append(self._start(constraint, limit))
        for number in sorted(range(len(prompts)), key=lambda each: -len(prompts[each].ids)):
            candidate = candidates[number]
            seed = question_seed(task.sampling.seed, questions[candidate.question].row)
            request = Request(
                prompt=prompts[number].ids,
                new_tokens=limit,
                ends=ends,
                sampling=dataclasses.replace(task.sampling, seed=seed),
                number=candidate.sample * _MAX_ATTEMPTS + candidate.attempts,
                adapter=self._adapter,
                constraint=rows[number],
            )
            tickets[decoder.add(request)] = number
        answers: list[list[int]] = [[] for _ in prompts]
        while not decoder.is_idle:
            for ticket, token, _ in decoder.step():
                answers[tickets[ticket]] += [] if token in ends else [token]
        sayings = []
        for prompt, ids, row in zip(prompts, answers, rows, strict=True):
            text, count, is_cut = self._read(ids, limit, row)
            plain_text = without_thoughts(text, opens_thoughts(self._tokenizer, prompt.ids))
            sayings.append(Saying(text, plain_text, prompt, count, is_cut))
        return sayings

    def _read(self, ids: Sequence[int], limit: int, constraint: Constraint | None) -> Text:
        is_cut = len(ids) == limit if constraint is None else not constraint.is_complete
        return Text(self._tokenizer.decode(ids), len(ids), is_cut)

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
