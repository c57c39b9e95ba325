"""Texts with a label, asked of a model whose head says classes or a number."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np

from research.batch import Batch, bucket_length
from research.config.schema import Positive, PositiveNumber
from research.data.sources import AnySourceConfig
from research.evaluation.calibration import confidence
from research.evaluation.question_task import LoadedModel, QuestionTask
from research.evaluation.questions import Question
from research.evaluation.results import Answer, Cost, Part
from research.generation.responders import Responder
from research.losses.squared_error import TOLERANCE
from research.objectives import Classification, Regression
from research.objectives.labelled_text import LabelledText
from research.text.conversation import from_messages


@dataclasses.dataclass(frozen=True)
class HeadTask(QuestionTask):
    """Labelled texts of a split, read as the run's own objective reads them."""

    source: AnySourceConfig
    split: str = "test"
    max_questions: Positive | None = None
    # texts that are read at a time
    batch_size: Positive = 16
    group: str | None = "cluster"
    breakdown: tuple[str, ...] = ()

    asks_head = True
    objective = None
    retrieval = None
    # what the run was trained to say
    of: ClassVar[type[LabelledText]]
    metric: ClassVar[str]

    def question(self, record: Mapping[str, Any], row: int, name: str) -> Question:
        (text,) = self.of().texts(record, f"{name}, row {row}")
        return Question(row, from_messages([{"role": "user", "content": text}]), record)

    def measures(self, record: Mapping[str, Any]) -> Iterable[str]:
        return [self.metric]

    def check_model(self, responder: Responder, questions: Sequence[Question]) -> None:
        objective = self._objective(responder)
        for question in questions:
            objective.label_of(question.record, f"row {question.row}")
        super().check_model(responder, questions)

    def _objective(self, responder: Responder) -> LabelledText:
        objective = responder.objective
        if not isinstance(objective, self.of):
            kind = None if objective is None else objective.kind
            raise ValueError(
                f"{responder.run.path} was trained on {kind}, not {self.of.kind}: ask it with the "
                "task of that kind"
            )
        return objective

    def answer_in_parts(
        self, model: LoadedModel, questions: Sequence[Question], finished: Collection[int]
    ) -> Iterator[Part]:
        objective = self._objective(model.responder)
        prompts = [self.write(model.responder, question) for question in questions]
        buckets: dict[int, list[int]] = collections.defaultdict(list)
        for number, prompt in enumerate(prompts):
            buckets[bucket_length(len(prompt.ids))].append(number)
        for length, members in sorted(buckets.items()):
            for start in range(0, len(members), self.batch_size):
                numbers = members[start : start + self.batch_size]
                if all(number in finished for number in numbers):
                    continue
                rows = [prompts[number].ids for number in numbers]
                outputs = model.outputs(_batch(rows, length, self.batch_size))[: len(rows)]
                if not np.isfinite(outputs).all():
                    raise ValueError("the head's outputs are not finite: its weights are broken")
                answers = {}
                for number, scores in zip(numbers, outputs.astype(float), strict=True):
                    question, prompt = questions[number], prompts[number]
                    label = objective.label_of(question.record, f"row {question.row}")
                    answer = self.answer_of(objective, scores, label)
                    answers[number] = dataclasses.replace(
                        answer,
                        question=question.text,
                        digest=question.digest([answer.reference]),
                        prompt_tokens=len(prompt.ids),
                    )
                flops = sum(model.flops.text(len(row)) + model.flops.head for row in rows)
                yield Part(
                    answers,
                    truncated=sum(prompts[number].is_cut for number in numbers),
                    tokens_read=sum(map(len, rows)),
                    cost=Cost(flops, model.weight_bytes),
                )

    def answer_of(self, objective: LabelledText, scores: np.ndarray, label: float) -> Answer:
        """What a head says, and its scores.

        Args:
          scores: [C].
          label: the right class's number, or the number.
        """
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class ClassificationTask(HeadTask):
    """`right` is the share of texts whose class has the highest score."""

    kind: Literal["classification"] = "classification"
    of = Classification
    metric = "right"

    def answer_of(self, objective: LabelledText, scores: np.ndarray, label: float) -> Answer:
        best, right = int(np.argmax(scores)), int(label)
        return Answer(
            question="",
            answer=objective.classes[best],
            digest="",
            scores={self.metric: float(best == right)},
            confidence=confidence(scores),
            reference=objective.classes[right],
            places=[best, right],
        )


@dataclasses.dataclass(frozen=True)
class RegressionTask(HeadTask):
    """`within` is the share of numbers that lie at most `tolerance` from the right one.

    Beside it stand the mean squared and absolute error, and the correlation
    (`TaskResult.errors`).
    """

    tolerance: PositiveNumber = TOLERANCE
    kind: Literal["regression"] = "regression"
    of = Regression
    metric = "within"

    def answer_of(self, objective: LabelledText, scores: np.ndarray, label: float) -> Answer:
        number = float(scores[0])
        return Answer(
            question="",
            answer=f"{number:.6g}",
            digest="",
            scores={self.metric: float(abs(number - label) <= self.tolerance)},
            reference=f"{label:.6g}",
            numbers=[number, label],
        )


def _batch(rows: Sequence[Sequence[int]], length: int, size: int) -> Batch:
    """A text in each row, whose last token has weight; the last row again up to `size`."""
    full = [*rows, *([rows[-1]] * (size - len(rows)))]
    fields = np.zeros((5, size, length), np.int32)
    tokens, targets, weights, segments, positions = fields
    for place, row in enumerate(full):
        tokens[place, : len(row)], segments[place, : len(row)] = row, 1
        positions[place, : len(row)] = np.arange(len(row))
        weights[place, len(row) - 1] = 1
    return Batch(tokens, targets, weights.astype(np.float32), segments, positions)
