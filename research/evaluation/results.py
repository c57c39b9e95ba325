"""What a task found: every answer with its scores, and what they come to."""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from research.config.schema import build
from research.evaluation.calibration import Calibration, calibrate
from research.evaluation.errors import Errors, measure_errors
from research.reports.statistics import (
    Estimate,
    PairedDifference,
    mean_interval,
    paired_difference,
    ratio_interval,
    score_interval,
    swap_test,
)

# Things that one answer is the mean of, at most: instructions of a prompt.
_MAX_WEIGHT = 1_000_000


@dataclasses.dataclass(frozen=True)
class Answer:
    """One answer of a model."""

    question: str
    answer: str
    # the same for the same question and right answer, in any result
    digest: str
    # metric -> number, the higher the better, but for bits and nats of text
    scores: Mapping[str, float]
    # of its question: near duplicates, or what else answers are told apart by; None: its own
    group: str | None = None
    # why nothing could be read in it; empty: something could
    unreadable: str = ""
    # as in `scorers.Scores`
    remark: str = ""
    # whether it was stopped before its end
    is_cut: bool = False
    # why its constraint failed, which stopped it; empty: it did not
    failure: str = ""
    prompt_tokens: int = 0
    new_tokens: int = 0
    # the probability that the model gives it among its options; None: it had none
    confidence: float | None = None
    # the right answer, where there is one
    reference: str | None = None
    # number of the answer and of the right one among the options; None: there were none
    places: Sequence[int] | None = None
    # of a number: the one that was said, and the right one; None: it is none
    numbers: Sequence[float] | None = None
    # field -> its value in the record, by which results are broken down
    fields: Mapping[str, str] = dataclasses.field(default_factory=dict)
    # ids of the passages in its prompt, best first; None: nothing is retrieved for it
    passages: Sequence[str] | None = None
    # where it is of several samples: their texts, the scores of each, and its tokens
    samples: Sequence[str] = dataclasses.field(default_factory=list)
    sample_scores: Mapping[str, Sequence[float]] = dataclasses.field(default_factory=dict)
    sample_tokens: Sequence[int] = dataclasses.field(default_factory=list)
    # as in `scorers.Scores`
    weights: Mapping[str, int] = dataclasses.field(default_factory=dict)
    unscored: Mapping[str, int] = dataclasses.field(default_factory=dict)
    # of a metric that is a rate, such as bits per byte: of how many bytes
    sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Cost:
    """What answers cost, in closed form: padding, repeated rows and rounded sizes are left out."""

    # of all tokens that are read and written, each once (`research.training.cost.ForwardFlops`)
    flops: float = 0.0
    # of all arrays of the model, as they lie in memory, each once
    weight_bytes: int = 0
    # of keys and values: of a batch of the longest answers
    cache_bytes: int = 0

    def __add__(self, other: Cost) -> Cost:
        """Of both, one after the other."""
        return Cost(
            self.flops + other.flops,
            max(self.weight_bytes, other.weight_bytes),
            max(self.cache_bytes, other.cache_bytes),
        )


@dataclasses.dataclass(frozen=True)
class StepUsage:
    """What a step of a workflow cost."""

    # its kind
    step: str
    # how often the model was asked
    answers: int
    prompt_tokens: int
    new_tokens: int
    # wall clock, compilation included
    seconds: float

    def __add__(self, other: StepUsage) -> StepUsage:
        """Of both, which are of the same step."""
        return StepUsage(
            self.step,
            self.answers + other.answers,
            self.prompt_tokens + other.prompt_tokens,
            self.new_tokens + other.new_tokens,
            self.seconds + other.seconds,
        )


@dataclasses.dataclass(frozen=True)
class Part:
    """Answers that were finished together: what is kept where an evaluation is killed."""

    # number of the question, among those of the task -> its answer
    answers: Mapping[int, Answer]
    # questions that were cut to the window
    truncated: int = 0
    # tokens that were read to choose among options
    tokens_read: int = 0
    # wall clock, compilation included
    seconds: float = 0.0
    cost: Cost = Cost()
    # of each step of a workflow
    steps: Sequence[StepUsage] = ()


@dataclasses.dataclass(frozen=True)
class TaskResult:
    """The answers of a model to the questions of a task."""

    answers: Sequence[Answer]
    # questions that were cut to the window
    truncated: int
    # wall clock of all answers, compilation included
    seconds: float
    # tokens that were read to choose among options
    tokens_read: int = 0
    # how it was asked and scored, as JSON
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    cost: Cost = Cost()
    # of each step of a workflow
    steps: Sequence[StepUsage] = ()
    # answers that were there from an earlier run of the program
    earlier: int = dataclasses.field(default=0, compare=False)

    @functools.cached_property  # intervals of groups are resampled thousands of times
    def metrics(self) -> dict[str, Estimate]:
        """Metric -> mean with its interval, over the answers that have it; two at least, or one
        document."""
        names = dict.fromkeys(name for answer in self.answers for name in answer.scores)
        having = {name: [a for a in self.answers if name in a.scores] for name in names}
        return {
            name: estimate(each, name)
            for name, each in having.items()
            if len(each) > 1 or self.is_text
        }

    @property
    def calibration(self) -> Calibration | None:
        """Whether it is as often right as it is sure; None where it chose among no options."""
        metric = next((name for name in self.metrics), None)
        sure = [a for a in self.answers if a.confidence is not None and metric in a.scores]
        if metric is None or len(sure) < 2:
            return None
        confidences = np.asarray([answer.confidence for answer in sure])
        return calibrate(confidences, np.asarray([answer.scores[metric] for answer in sure]))

    @property
    def is_text(self) -> bool:
        """Whether its answers are documents, of which the model predicted every token."""
        return self.settings.get("kind") == "text"

    @property
    def errors(self) -> Errors | None:
        """How far numbers lie from the right ones; None where it said none."""
        pairs = [answer.numbers for answer in self.answers if answer.numbers is not None]
        return measure_errors(np.asarray(pairs, float)) if len(pairs) > 1 else None

    @property
    def cut(self) -> int:
        """Answers that were stopped before their end."""
        return sum(answer.is_cut for answer in self.answers)

    @property
    def failed(self) -> int:
        """Answers that their constraint failed in."""
        return sum(bool(answer.failure) for answer in self.answers)

    @property
    def unreadable(self) -> int:
        """Answers in which nothing could be read."""
        return sum(bool(answer.unreadable) for answer in self.answers)

    @property
    def without_passages(self) -> int:
        """Questions for which passages were looked for, and have none in their prompts."""
        return sum(answer.passages is not None and not answer.passages for answer in self.answers)

    @property
    def unscored(self) -> dict[str, int]:
        """What -> how much of it is not in the scores."""
        counts: collections.Counter[str] = collections.Counter()
        for answer in self.answers:
            counts.update(answer.unscored)
        return dict(counts)

    @property
    def prompt_tokens(self) -> int:
        return sum(answer.prompt_tokens for answer in self.answers)

    @property
    def new_tokens(self) -> int:
        return sum(answer.new_tokens for answer in self.answers)

    def to_dict(self) -> dict[str, Any]:
        """As JSON, the answers one by one."""
        counts = (
            *("truncated", "cut", "failed", "unreadable", "unscored", "without_passages"),
            *("prompt_tokens", "new_tokens", "tokens_read"),
        )
        metrics = {name: dataclasses.asdict(value) for name, value in self.metrics.items()}
        calibration, errors = self.calibration, self.errors
        return {
            "metrics": metrics,
            "calibration": None if calibration is None else dataclasses.asdict(calibration),
            "errors": None if errors is None else dataclasses.asdict(errors),
            "seconds": self.seconds,
            "cost": dataclasses.asdict(self.cost),
            "steps": [dataclasses.asdict(step) for step in self.steps],
            "settings": self.settings,
            **{name: getattr(self, name) for name in counts},
            "answers": [dataclasses.asdict(answer) for answer in self.answers],
        }


def answer_count(parts: Iterable[Part]) -> int:
    """How many questions some parts answer."""
    return len({number for part in parts for number in part.answers})


def join_parts(parts: Iterable[Part], count: int) -> TaskResult:
    """The result of a task of so many questions.

    Raises:
      ValueError: a question that no part answers.
    """
    parts = list(parts)
    # sums of floats depend on their order, and parts may come in any
    by_number = sorted(parts, key=lambda part: min(part.answers))
    answers = {number: each for part in parts for number, each in part.answers.items()}
    if missing := [number for number in range(count) if number not in answers]:
        raise ValueError(f"{len(missing)} of {count} questions have no answer")
    return TaskResult(
        answers=[answers[number] for number in range(count)],
        truncated=sum(part.truncated for part in parts),
        seconds=sum(part.seconds for part in parts),
        tokens_read=sum(part.tokens_read for part in parts),
        cost=sum((part.cost for part in by_number), Cost()),
        steps=tuple(
            functools.reduce(operator.add, same)
            for same in zip(*(part.steps for part in by_number), strict=True)
        ),
    )


def read_result(content: Mapping[str, Any]) -> TaskResult:
    """What `TaskResult.to_dict` wrote.

    Raises:
      ValueError, TypeError, KeyError: it is none; says what is not as it was written.
    """
    answers = [
        build(Answer, answer, f"answers[{number}]")
        for number, answer in enumerate(content["answers"])
    ]
    cost = build(Cost, content.get("cost", {}), "cost")  # older files have none
    steps = tuple(build(StepUsage, step, "steps") for step in content.get("steps", ()))
    counts = (content["truncated"], content["seconds"], content.get("tokens_read", 0))
    numbers = [*counts, cost.flops, *(score for each in answers for score in each.scores.values())]
    for number in numbers:
        if type(number) not in (int, float) or not math.isfinite(number):
            raise ValueError(f"{number!r:.40} is no number")
    for answer in answers:
        if not all(0 < weight <= _MAX_WEIGHT for weight in answer.weights.values()):
            raise ValueError(f"weights {dict(answer.weights)!r:.60}")
        if not all(size > 0 for size in answer.sizes.values()):
            raise ValueError(f"sizes {dict(answer.sizes)!r:.60}")
    return TaskResult(answers, *counts, content["settings"], cost, steps)


def groups_of(answers: Sequence[Answer]) -> np.ndarray | None:
    """[N] the group of each answer; None where they have none."""
    names = [answer.group for answer in answers]
    return None if None in names else np.asarray(names)


@dataclasses.dataclass(frozen=True)
class MetricValues:
    """A metric that N answers have."""

    values: np.ndarray  # [N]
    counts: np.ndarray  # [N] `Answer.weights`
    sizes: np.ndarray | None  # [N] `Answer.sizes`; None: it is no rate
    groups: np.ndarray | None  # [N]; None: each answer is its own

    @classmethod
    def of(cls, answers: Sequence[Answer], name: str) -> MetricValues:
        """Of a metric that all answers have."""
        values = np.asarray([answer.scores[name] for answer in answers])
        counts = np.asarray([answer.weights.get(name, 1) for answer in answers])
        sizes = np.asarray([answer.sizes.get(name, 0) for answer in answers], float)
        return cls(values, counts, sizes if sizes.any() else None, groups_of(answers))

    @property
    def estimate(self) -> Estimate:
        """The mean: a share where it is 0 or 1, and a rate over all that it is a rate of."""
        if self.sizes is not None:
            return _rate(self.values * self.sizes, self.sizes, self.groups)
        return score_interval(*self.apart)

    @property
    def apart(self) -> tuple[np.ndarray, np.ndarray | None]:
        """An answer as often as there are things whose mean it has; they are a group of their
        own."""
        if set(self.counts.tolist()) == {1}:
            return self.values, self.groups
        groups = np.arange(len(self.values)) if self.groups is None else self.groups
        return np.repeat(self.values, self.counts), np.repeat(groups, self.counts)

    def less(self, other: MetricValues) -> PairedDifference:
        """The difference from the same answers of another model."""
        if self.sizes is not None:
            change = (self.values - other.values) * self.sizes
            mean = _rate(change, self.sizes, self.groups)
            p_value = swap_test(change, self.groups) if len(change) > 1 else 1.0
            return PairedDifference(mean, p_value, 0, 0)
        (a, groups), (b, _) = self.apart, other.apart
        if np.isin([a, b], (0, 1)).all():
            return paired_difference(a, b, groups=groups)
        return PairedDifference(mean_interval(a - b, groups=groups), swap_test(a - b, groups), 0, 0)


def _rate(sums: np.ndarray, sizes: np.ndarray, groups: np.ndarray | None) -> Estimate:
    """Of all answers together; of a single one no interval can be told."""
    if len(sums) > 1:
        return ratio_interval(sums, sizes, groups=groups)
    value = float(sums[0] / sizes[0])
    return Estimate(value, value, value, 1)


def estimate(answers: Sequence[Answer], name: str) -> Estimate:
    """The mean of a metric that all answers have."""
    return MetricValues.of(answers, name).estimate
