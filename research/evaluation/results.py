"""What a task found: every answer with its scores, and what they come to."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from research.reports.statistics import Estimate, mean_interval, proportion_interval


@dataclasses.dataclass(frozen=True)
class Answer:
    """One answer of a model."""

    question: str
    answer: str
    # the same for the same question and right answer, in any result
    digest: str
    # metric -> number, the higher the better
    scores: Mapping[str, float]
    # of its question: near duplicates, or what else answers are told apart by; None: its own
    group: str | None = None
    # why nothing could be read in it; empty: something could
    unreadable: str = ""
    # whether it was stopped before its end
    is_cut: bool = False
    prompt_tokens: int = 0
    new_tokens: int = 0


@dataclasses.dataclass(frozen=True)
class TaskResult:
    """The answers of a model to the questions of a task."""

    answers: Sequence[Answer]
    # questions that were cut to the window
    truncated: int
    # wall clock of all answers, compilation included
    seconds: float

    @functools.cached_property  # intervals of groups are resampled thousands of times
    def metrics(self) -> dict[str, Estimate]:
        """Metric -> mean with its interval, over the answers that have it; two at least."""
        names = dict.fromkeys(name for answer in self.answers for name in answer.scores)
        having = {name: [a for a in self.answers if name in a.scores] for name in names}
        return {name: estimate(each, name) for name, each in having.items() if len(each) > 1}

    @property
    def cut(self) -> int:
        """Answers that were stopped before their end."""
        return sum(answer.is_cut for answer in self.answers)

    @property
    def unreadable(self) -> int:
        """Answers in which nothing could be read."""
        return sum(bool(answer.unreadable) for answer in self.answers)

    @property
    def prompt_tokens(self) -> int:
        return sum(answer.prompt_tokens for answer in self.answers)

    @property
    def new_tokens(self) -> int:
        return sum(answer.new_tokens for answer in self.answers)

    def to_dict(self) -> dict[str, Any]:
        """As JSON, the answers one by one."""
        counts = ("truncated", "cut", "unreadable", "prompt_tokens", "new_tokens", "seconds")
        metrics = {name: dataclasses.asdict(value) for name, value in self.metrics.items()}
        return {
            "metrics": metrics,
            **{name: getattr(self, name) for name in counts},
            "answers": [dataclasses.asdict(answer) for answer in self.answers],
        }


def read_result(content: Mapping[str, Any]) -> TaskResult:
    """What `TaskResult.to_dict` wrote.

    Raises:
      KeyError, TypeError: it is none.
    """
    answers = [Answer(**answer) for answer in content["answers"]]
    return TaskResult(answers, content["truncated"], content["seconds"])


def groups_of(answers: Sequence[Answer]) -> np.ndarray | None:
    """[N] the group of each answer; None where they have none."""
    names = [answer.group for answer in answers]
    return None if None in names else np.asarray(names)


def estimate(answers: Sequence[Answer], name: str) -> Estimate:
    """The mean of a metric that all answers have: a share where it is 0 or 1."""
    values, groups = np.asarray([a.scores[name] for a in answers]), groups_of(answers)
    if np.isin(values, (0, 1)).all():
        return proportion_interval(values, groups=groups)
    return mean_interval(values, groups=groups)
