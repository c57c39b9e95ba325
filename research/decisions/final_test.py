"""The last look: the test rows, once, for the advised way and its runner-up."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from research.decisions import baselines
from research.decisions.asking import Asker
from research.decisions.ladder import Budget, Measured
from research.decisions.problem import Problem
from research.decisions.screening import difference
from research.evaluation.questions import draw_rows
from research.evaluation.results import estimate
from research.reports.statistics import Estimate, score_interval

FEWEST = 30  # test rows, whatever the time that is left


@dataclasses.dataclass(frozen=True)
class TestResult:
    """A way on the test rows, which were asked once."""

    name: str
    quality: Estimate
    scores: np.ndarray  # [N]


def affordable_rows(ways: Sequence[Measured], budget: Budget, count: int) -> int:
    """How many of the `count` test rows these ways can be asked in the time that is left."""
    seconds = sum(each.request.seconds for each in ways if each.way is not None)
    left = max(0.0, budget.seconds - budget.spending)
    return count if seconds * count <= left else min(count, max(FEWEST, int(left / seconds)))


def ask_test(
    problem: Problem, measured: Measured, asker: Asker, count: int
) -> tuple[TestResult, float]:
    """A way on `count` of the test rows, drawn by a fixed seed, and the seconds that it took."""
    if measured.way is None:
        kind = next(k for k, name in baselines.NAMES.items() if name == measured.name)
        own = baselines.measure_baseline(problem, kind, measured.name, ("test",))
        rows = draw_rows(len(problem.rows.test), count)
        scores = own.scores[rows]
        groups = _groups(problem, rows)
        quality = score_interval(scores, None if groups is None else np.asarray(groups))
        return TestResult(measured.name, quality, scores), 0.0
    result = asker.ask(measured.way, "test", count)
    scores = np.asarray([answer.scores.get(problem.metric, 0.0) for answer in result.answers])
    quality = estimate(result.answers, problem.metric)
    return TestResult(measured.name, quality, scores), result.seconds


def lead_of(problem: Problem, tests: Sequence[TestResult]) -> Estimate | None:
    """The first less the second, on the same rows; None without two."""
    if len(tests) < 2:
        return None
    rows = draw_rows(len(problem.rows.test), len(tests[0].scores))
    return difference(tests[0].scores, tests[1].scores, _groups(problem, rows))


def _groups(problem: Problem, rows: Sequence[int]) -> list[str] | None:
    """The group of each test row; None where each is its own."""
    names = [str(problem.rows.test[row]["cluster"]) for row in rows]
    return names if len(set(names)) < len(names) else None
