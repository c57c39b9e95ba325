"""Two models on the same questions: what is between them, and whether chance explains it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from research.evaluation.results import Answer, MetricValues, TaskResult, estimate, read_result
from research.reports.statistics import (
    Estimate,
    PairedDifference,
    holm,
)
from research.runtime import unique_json


@dataclasses.dataclass(frozen=True)
class MetricDifference:
    """A metric of two models on the same questions."""

    task: str
    metric: str
    first: Estimate
    second: Estimate
    # the first less the second
    paired: PairedDifference
    # of "neither is better", corrected for all metrics that are compared (Holm 1979)
    p_value: float


def compare(
    first: Mapping[str, TaskResult], second: Mapping[str, TaskResult]
) -> list[MetricDifference]:
    """Every metric of every task that both have, paired by question.

    Raises:
      ValueError: no task in common, or other questions in one.
    """
    names = [name for name in first if name in second]
    if not names:
        raise ValueError(
            f"no task in common: {', '.join(first) or 'none'} and {', '.join(second) or 'none'}"
        )
    rows = []
    for name in names:
        for part in ("kind", "scorers"):
            mine, theirs = (each[name].settings.get(part) for each in (first, second))
            if mine != theirs:
                raise ValueError(
                    f"{name}: the two were scored by other rules ({part} {mine!r:.200} and "
                    f"{theirs!r:.200}): their difference would be of the rules"
                )
        answers, others = _pair(name, first[name], second[name])
        for metric in first[name].metrics:
            both = [i for i in range(len(answers)) if metric in answers[i].scores]
            having = [i for i in both if metric in others[i].scores]
            if len(having) > 1:
                pair = [answers[i] for i in having], [others[i] for i in having]
                rows.append((name, metric, *pair))
    tests = [MetricValues.of(a, m).less(MetricValues.of(b, m)) for _, m, a, b in rows]
    corrected = holm([test.p_value for test in tests])
    return [
        MetricDifference(name, metric, estimate(a, metric), estimate(b, metric), test, p_value)
        for (name, metric, a, b), test, p_value in zip(rows, tests, corrected, strict=True)
    ]


def other_settings(first: Mapping[str, TaskResult], second: Mapping[str, TaskResult]) -> list[str]:
    """What two results of one task were asked otherwise by, a line a setting."""
    lines = []
    for name in (name for name in first if name in second):
        mine, theirs = first[name].settings, second[name].settings
        for key in sorted(mine.keys() | theirs.keys()):
            if mine.get(key) != theirs.get(key):
                lines.append(f"{name}: {key} {mine.get(key)!r:.80} and {theirs.get(key)!r:.80}")
    return lines


def read_results(path: str | Path) -> dict[str, TaskResult]:
    """The tasks in a file that `graft evaluate --out` wrote.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is none, or has no task's answers.
    """
    try:
        content = unique_json.parse(Path(path).read_bytes())
        results = {name: read_result(task) for name, task in content["tasks"].items()}
        for name, result in results.items():
            if not isinstance(result.settings, Mapping):
                raise TypeError(f"{name}: settings {result.settings!r:.40}")
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise ValueError(
            f"{path}: no answers to compare with ({error!r:.200}): write it with graft evaluate "
            "--out"
        ) from None
    return results


def _pair(name: str, first: TaskResult, second: TaskResult) -> tuple[list[Answer], list[Answer]]:
    """The answers of both in the order of the first's questions."""
    one = [answer.digest for answer in first.answers]
    other = [answer.digest for answer in second.answers]
    if sorted(one) != sorted(other):
        common = len(set(one) & set(other))
        raise ValueError(
            f"{name}: the two were not asked the same: {common} questions in common, of {len(one)} "
            f"and {len(other)}. Ask both with one config"
        )
    order = np.argsort(np.argsort(one, kind="stable"), kind="stable")
    others = [second.answers[i] for i in np.argsort(other, kind="stable")]
    return list(first.answers), [others[i] for i in order]
