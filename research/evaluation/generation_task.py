"""Questions that a model answers in words, and what its answers are worth."""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar

from research.batch import longest_first
from research.config.schema import Positive
from research.data.sources import AnySourceConfig
from research.evaluation.passages import Prompt
from research.evaluation.question_task import LoadedModel
from research.evaluation.questions import Question
from research.evaluation.results import Answer, Cost, Part, TaskResult
from research.evaluation.samples import add_pass_at, join_samples
from research.evaluation.scorers import AnyScorer, Scorer
from research.evaluation.scorers.base import references
from research.evaluation.workflows import AnyStep
from research.evaluation.workflows.check import Check
from research.evaluation.workflows.run import check_workflow, run_workflow
from research.evaluation.writing import AnsweredTask, Draw, Text, Writer, check_constraints
from research.generation.constraints import AnyConstraint
from research.generation.responders import Responder
from research.generation.sampling import Sampling
from research.objectives import ObjectiveConfig
from research.retrieval import AnyRetrieval

T = TypeVar("T")
# of `batch_size`: so many answers are written and kept together, and rows that end are refilled
BATCHES = 4


@dataclasses.dataclass(frozen=True)
class GenerationTask(AnsweredTask):
    """Questions that are answered in words."""

    source: AnySourceConfig
    # what is measured of each answer
    scorers: tuple[AnyScorer, ...]
    split: str = "test"
    max_questions: Positive | None = None
    objective: ObjectiveConfig | None = None
    sequence_length: Positive = 1024
    # most tokens of an answer; one that has not ended then is cut, and counted
    max_tokens: Positive = 128
    # answers that are written at a time
    batch_size: Positive = 16
    sampling: Sampling = Sampling()
    # answers of each question, drawn with a seed of its own; see `samples.join_samples`
    samples: Positive = 1
    # k of `pass@K/METRIC`, at most so many as there are samples
    pass_at: tuple[Positive, ...] = ()
    group: str | None = "cluster"
    breakdown: tuple[str, ...] = ()
    retrieval: AnyRetrieval | None = None
    # what every answer must be, whatever the model; None: anything
    constraint: AnyConstraint | None = None
    # what stands before and behind the thoughts of an answer, which are not scored, where neither
    # the model's chat template nor the names of its tokens show it
    thoughts: tuple[str, str] | None = None
    # the steps in which a question is answered, the first a draft; none: it is asked once
    workflow: tuple[AnyStep, ...] = ()
    kind: Literal["generation"] = "generation"
    is_written = True

    def __post_init__(self) -> None:
        if not self.scorers:
            raise ValueError("a generation task needs `scorers`, such as dict(kind='exact_match')")
        labels = collections.Counter(scorer.label for scorer in self.scorers)
        label, count = labels.most_common(1)[0]
        if count > 1:
            raise ValueError(f"two scorers are called {label!r}: give one of them a `name`")
        if self.samples > 1 and self.sampling.temperature == 0:
            raise ValueError(
                f"{self.samples} samples of the likeliest tokens are all the same: set "
                "`sampling.temperature` above 0, such as 0.8, or leave `samples` at 1"
            )
        if max(self.pass_at, default=1) > self.samples:
            raise ValueError(
                f"pass@{max(self.pass_at)} needs as many `samples`, and there are {self.samples}"
            )
        if self.thoughts is not None and not all(map(str.strip, self.thoughts)):
            raise ValueError('`thoughts` are two texts, such as ("<think>", "</think>")')
        if self.workflow:
            check_workflow(self.workflow, self.sampling)
            if self.samples > 1:
                raise ValueError("with a workflow, set `samples` in its vote and not in the task")

    @property
    def key(self) -> Any:
        """What its scorers depend on, as JSON."""
        return [scorer.key for scorer in (*self.scorers, *self._step_scorers)]

    @property
    def _step_scorers(self) -> list[Scorer]:
        """The scorers of its workflow."""
        return [scorer for step in self.workflow for scorer in step.scorer_configs]

    @property
    def machine_key(self) -> Any:
        return [scorer.machine_key for scorer in (*self.scorers, *self._step_scorers)]

    @property
    def reads(self) -> frozenset[str]:
        """Fields of records that its scorers read."""
        return frozenset().union(*(each.reads for each in (*self.scorers, *self._step_scorers)))

    @property
    def is_shared(self) -> bool:
        """As `QuestionTask`; what is asked next must not depend on a process either."""
        return super().is_shared and not any(each.runs_code for each in self._step_scorers)

    @property
    def layer(self) -> str:
        scorers = (*self.scorers, *self._step_scorers)
        return next((scorer.layer for scorer in scorers if scorer.layer), "")

    @property
    def settings(self) -> dict[str, Any]:
        return super().settings | {"scorers": self.key}

    def check(self, questions: Sequence[Question]) -> None:
        for question in questions:
            for scorer in (*self.scorers, *self._step_scorers):
                try:
                    scorer.check(question.record)
                except ValueError as error:
                    raise ValueError(f"row {question.row}, {scorer.label}: {error}") from None

    def right_answers(self, record: Mapping[str, Any]) -> list[str]:
        """As its scorers read them, or else the completion."""
        fields = {scorer.reference for scorer in self.scorers if scorer.reference is not None}
        fields = fields or ({"completion"} & record.keys())
        return [text for field in sorted(fields) for text in references(record, field)]

    def measures(self, record: Mapping[str, Any]) -> Iterable[str]:
        names = list(_join(scorer.score("", record).values for scorer in self.scorers))
        if self._has_check:  # a workflow is of one sample
            return [*names, "passes"]
        if self.samples == 1:
            return names
        names_of_all = [f"agreement/{scorer.label}" for scorer in self.scorers]
        names_of_all += [f"majority/{name}" for name in names]
        return names + names_of_all + [f"pass@{k}/{name}" for k in self.pass_at for name in names]

    @property
    def _has_check(self) -> bool:
        return any(isinstance(step, Check) for step in self.workflow)

    def check_model(self, responder: Responder, questions: Sequence[Question]) -> None:
        check_constraints(self, responder)
        prompts = [self.write(responder, question).ids for question in questions]
        responder.run.model.check_length(max(map(len, prompts)) + self.max_tokens)

    def answer_in_parts(
        self, model: LoadedModel, questions: Sequence[Question], finished: Collection[int]
    ) -> Iterator[Part]:
        check_constraints(self, model.responder)
        writer = Writer(model, self)
        if self.workflow:
            yield from self._answer_in_steps(model, writer, questions, finished)
            return
        prompts = [self.write(model.responder, question) for question in questions]
        size = max(1, BATCHES * self.batch_size // self.samples)
        for numbers in longest_first([len(prompt.ids) for prompt in prompts], size):
            if all(number in finished for number in numbers):
                continue
            asked_numbers = [number for number in numbers for _ in range(self.samples)]
            texts = writer.write(
                [prompts[number].ids for number in asked_numbers],
                [Draw(questions[n].row, k) for n in numbers for k in range(self.samples)],
            )
            answers = {}
            for place, number in enumerate(numbers):
                own = texts[place * self.samples : (place + 1) * self.samples]
                answers[number] = self._judge(writer, questions[number], prompts[number], own)
            truncated = sum(prompts[number].is_cut for number in answers)
            yield Part(answers, truncated, cost=self._cost(model, prompts, answers.values()))

    def _answer_in_steps(
        self,
        model: LoadedModel,
        writer: Writer,
        questions: Sequence[Question],
        finished: Collection[int],
    ) -> Iterator[Part]:
        """As `answer_in_parts`, by the workflow."""
        write = functools.partial(writer.say, questions)
        for start in range(0, len(questions), BATCHES * self.batch_size):
            numbers = range(start, min(start + BATCHES * self.batch_size, len(questions)))
            if all(number in finished for number in numbers):
                continue
            records = {number: questions[number].record for number in numbers}
            outcome = run_workflow(self.workflow, records, write)
            answers, sayings = {}, [*itertools.chain(*outcome.sayings.values())]
            for number, candidate in outcome.answers.items():
                own = outcome.sayings[number]
                answer = self._score(questions[number], own[0].prompt, candidate.plain_text, 0)
                if self._has_check:
                    scores = {**answer.scores, "passes": float(candidate.passes)}
                    answer = dataclasses.replace(answer, scores=scores)
                answers[number] = dataclasses.replace(
                    answer,
                    answer=candidate.text,
                    is_cut=candidate.is_cut,
                    failure=candidate.failure,
                    prompt_tokens=sum(len(each.prompt.ids) for each in own),
                    new_tokens=sum(each.new_tokens for each in own),
                )
            counts = [(len(each.prompt.ids), each.new_tokens) for each in sayings]
            flops = sum(model.flops.answer(prompt, new + 1) for prompt, new in counts)
            longest = max(prompt + new for prompt, new in counts) + 1
            cost = Cost(flops, model.weight_bytes, model.cache_bytes(self.batch_size, longest))
            cut = sum(any(each.prompt.is_cut for each in outcome.sayings[n]) for n in numbers)
            yield Part(answers, cut, cost=cost, steps=outcome.usage)

    def _cost(
        self, model: LoadedModel, prompts: Sequence[Prompt], answers: Iterable[Answer]
    ) -> Cost:
        """What answers that were made together cost."""
        flops = sum(
            # the token that ends an answer is drawn too
            model.flops.answer(answer.prompt_tokens, count + (count < self.max_tokens))
            for answer in answers
            for count in answer.sample_tokens or [answer.new_tokens]
        )
        longest = max(len(prompt.ids) for prompt in prompts) + self.max_tokens
        return Cost(flops, model.weight_bytes, model.cache_bytes(self.batch_size, longest))

    def result(self, questions: Sequence[Question], parts: Sequence[Part]) -> TaskResult:
        result = super().result(questions, parts)
        return dataclasses.replace(result, answers=add_pass_at(result.answers, self.pass_at))

    def _judge(
        self,
        writer: Writer,
        question: Question,
        prompt: Prompt,
        texts: Sequence[Text],
    ) -> Answer:
        """Scores what is said to a question, in one text or several."""
        answers, plain_texts = [], []
        for text, new_tokens, is_cut, failure in texts:
            plain_texts.append(writer.plain_text(text, prompt))
            answer = self._score(question, prompt, plain_texts[-1], new_tokens)
            answers.append(dataclasses.replace(answer, answer=text, is_cut=is_cut, failure=failure))
        if self.samples == 1:
            return answers[0]
        return join_samples(
            answers, {s.label: [s.reading(text) for text in plain_texts] for s in self.scorers}
        )

    def _score(self, question: Question, prompt: Prompt, text: str, new_tokens: int) -> Answer:
        scores = [scorer.score(text, question.record) for scorer in self.scorers]
        fields = [scorer.reference for scorer in self.scorers if scorer.reference is not None]
        return Answer(
            question=question.text,
            answer=text,
            digest=question.digest(self.right_answers(question.record)),
            scores=_join([*(each.values for each in scores), prompt.scores]),
            weights=_join(each.weights for each in scores),
            unscored=_join(each.unscored for each in scores),
            unreadable="; ".join(filter(None, (each.unreadable for each in scores))),
            prompt_tokens=len(prompt.ids),
            new_tokens=new_tokens,
            reference=_as_text(question.record.get(fields[0])) if fields else None,
            passages=prompt.passages,
        )


def _as_text(reference: Any) -> str:
    """A right answer, as a page shows it."""
    return reference if isinstance(reference, str) else json.dumps(reference, ensure_ascii=False)


def _join(mappings: Iterable[Mapping[str, T]]) -> dict[str, T]:
    return {name: value for mapping in mappings for name, value in mapping.items()}
