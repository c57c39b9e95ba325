"""Which steps have a line in a run's metrics, in a few numbers: what a checkpoint records of them.

Lines of a step's training and of its evaluation are told apart. Each kind is a list of
progressions [first step, last step, stride], short as long as a run logs evenly: of a million steps
three numbers. A step that is logged twice is in two of them.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable, Mapping
from typing import Any

Progressions = dict[str, list[list[int]]]

_NAMES = 4  # steps that a message names


def kind_of(row: Mapping[str, Any]) -> str:
    """What a line tells of its step: the training, or an evaluation."""
    return "training" if "loss" in row else "evaluation"


class MetricSteps:
    """The steps of the lines so far.

    Attributes:
      progressions: kind -> those of its lines.
    """

    def __init__(self, rows: Iterable[Mapping[str, Any]] = ()):
        self.progressions: Progressions = {}
        for row in rows:
            self.add(row)

    def add(self, row: Mapping[str, Any]) -> None:
        """Takes a line more."""
        step, progressions = row["step"], self.progressions.setdefault(kind_of(row), [])
        if progressions:
            first, last, stride = progressions[-1]
            if step > last and (first == last or step == last + stride):
                progressions[-1] = [first, step, step - last]
                return
        progressions.append([step, step, 1])


def describe_difference(expected: Progressions, rows: Iterable[Mapping[str, Any]]) -> str:
    """What differs between the steps that a checkpoint recorded and the lines that are there, such
    as "missing: training of step 3"; "" if nothing does."""
    expected_counts = collections.Counter(
        (kind, step)
        for kind, progressions in expected.items()
        for first, last, stride in progressions
        for step in range(first, last + 1, stride)
    )
    counts = collections.Counter((kind_of(row), row["step"]) for row in rows)
    parts = {"missing": expected_counts - counts, "once too often": counts - expected_counts}
    return "; ".join(f"{what}: {_describe(part)}" for what, part in parts.items() if part)


def _describe(counts: Iterable[tuple[str, int]]) -> str:
    pairs = sorted(counts)
    parts = []
    for kind in dict.fromkeys(kind for kind, _ in pairs):
        steps = [step for other, step in pairs if other == kind]
        more = f" and {len(steps) - _NAMES} more" if len(steps) > _NAMES else ""
        parts.append(f"{kind} of step {', '.join(map(str, steps[:_NAMES]))}{more}")
    return ", ".join(parts)
