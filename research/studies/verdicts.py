"""What a study's claims come to: supported, refuted or inconclusive, and when nothing may be said.

Every claim becomes one number a seed: a difference of two cells, each at the best value of its own
sweep; the logarithm of a ratio of best values; a slope along an axis. The test over seeds is
Student's t. Where two cells answered the same questions, a test over questions (permutation of
near-duplicate clusters, answers averaged over seeds) is made too and the larger p counts: the
difference must hold over other seeds and over other questions. Holm's correction is over all claims
of the study.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

from research.reports.statistics import (
    Estimate,
    cluster_mean,
    detectable_difference,
    holm,
    mean_interval,
    repeats_needed,
    swap_test,
)
from research.studies.best_values import BestValue, best_values
from research.studies.cells import Cell, Pair
from research.studies.comparisons import AnyComparison, Comparison, Ratio, Trend
from research.studies.ledger import FINISHED, Row
from research.studies.results import find_row, number_of
from research.studies.schedule import Choice, Progress
from research.studies.study import Study
from research.studies.trials import Resolver

LEVEL = 0.05
MIN_SEEDS = 3
# how far the compute of two forms may be apart, where the study sets no budget of its own
_BUDGET_TOLERANCE = 0.1


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What one claim comes to, for one pair or line of cells."""

    comparison: AnyComparison
    # what the cells have in common, as tables name it
    label: str
    # supported, refuted or inconclusive; "none" where `reasons` forbid one
    word: str
    # of a comparison `better` minus `worse` in the metric; of a ratio the ratio; of a trend the
    # change as the axis doubles. With the interval over seeds; None: too few results
    estimate: Estimate | None = None
    # two-sided, after Holm's correction; of limits, that the number lies on their other side
    p_value: float | None = None
    # the smallest difference (ratio, change) that four of five such studies would see
    detectable: float | None = None
    # how many seeds would tell the number from its limit (or zero), if it is as it seems
    seeds_needed: int | None = None
    # why there is no verdict
    reasons: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The claim in words, with the cells that it is judged for."""
        is_said = self.label in ("", getattr(self.comparison, "cells", ""))
        return self.comparison.text if is_said else f"{self.comparison.text} ({self.label})"


@dataclasses.dataclass(frozen=True)
class _Side:
    """One cell: what its sweep found, its finished trials, and why it carries no verdict."""

    choice: Choice
    rows: Mapping[int, Row]  # by seed
    best: Mapping[int, BestValue]  # by seed; empty where no claim asks for it
    reasons: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class _Sample:
    """A claim as one number a seed, and the limits between which it says that their mean lies.

    Without limits it says on which side of zero.
    """

    numbers: Sequence[float]
    limits: tuple[float, float] | None
    reasons: tuple[str, ...]
    # where answers were kept: right ones of the first minus those of the second, and clusters
    answers: tuple[np.ndarray, Sequence[int] | None] | None = None


@dataclasses.dataclass(frozen=True)
class _Difference:
    """The metric of one cell minus that of another."""

    by_seed: Mapping[int, float]
    reasons: tuple[str, ...]
    # as in `_Sample`
    answers: tuple[np.ndarray, Sequence[int] | None] | None = None


def verdicts(resolver: Resolver, rows: Mapping[str, Row], progress: Progress) -> list[Verdict]:
    """The verdict of every claim for all cells that it is about; none before the study's end."""
    if not progress.is_finished:
        return []
    desk = _Results(resolver, rows, progress)
    judged = []
    for comparison in resolver.study.comparisons:
        if isinstance(comparison, Trend):
            for label, line in comparison.series(resolver.cells).items():
                judged.append(_judge(comparison, label, desk.trend(comparison, line)))
        elif isinstance(comparison, Ratio):
            for pair in comparison.pairs(resolver.cells):
                judged.append(_judge(comparison, pair.label, desk.ratio(comparison, pair)))
        else:
            for label, pairs in comparison.groups(resolver.cells).items():
                judged.append(_judge(comparison, label, desk.comparison(comparison, pairs)))
    tested = [verdict for verdict in judged if verdict.p_value is not None]
    corrected = dict(
        zip(map(id, tested), holm([verdict.p_value or 0.0 for verdict in tested]), strict=True)
    )
    return [
        _word(resolver.study, dataclasses.replace(verdict, p_value=corrected.get(id(verdict))))
        for verdict in judged
    ]


class _Results:
    """The results of a finished study, cell by cell."""

    def __init__(self, resolver: Resolver, rows: Mapping[str, Row], progress: Progress):
        self._resolver, self._rows, self._progress = resolver, rows, progress
        self._stage = resolver.study.stages[-1]

    def comparison(self, comparison: Comparison, pairs: Sequence[Pair]) -> _Sample:
        """The metric of the first cell minus that of the second, a number a seed; of several pairs
        their mean."""
        limits = None if comparison.margin is None else (-comparison.margin, comparison.margin)
        parts = [self._difference(comparison, pair) for pair in pairs]
        seeds = _common_seeds(*(part.by_seed for part in parts))
        numbers = [float(np.mean([part.by_seed[seed] for part in parts])) for seed in seeds]
        reasons = tuple(dict.fromkeys(reason for part in parts for reason in part.reasons))
        having = [part.answers for part in parts if part.answers is not None]
        answers = None
        if len(having) == len(parts):
            sizes = {len(differences) for differences, _ in having}
            if len(sizes) > 1:
                reasons += ("not all points were asked the same questions",)
            else:
                answers = np.mean([differences for differences, _ in having], axis=0), having[0][1]
        return _Sample(numbers, limits, reasons, answers)

    def _difference(self, comparison: Comparison, pair: Pair) -> _Difference:
        """Of one pair of cells."""
        sides, reasons = self._sides(pair[1:])
        if len(sides) < 2:
            return _Difference({}, reasons)
        reasons += self._budgets(*sides)
        seeds = _common_seeds(*(side.rows for side in sides))
        metric = comparison.metric or self._resolver.study.metric
        pairs = [(sides[0].rows[seed], sides[1].rows[seed]) for seed in seeds]
        numbers = [
            tuple(number_of(self._resolver, self._rows, row, metric) for row in each)
            for each in pairs
        ]
        by_seed = {
            seed: a - b
            for seed, (a, b) in zip(seeds, numbers, strict=True)
            if a is not None and b is not None
        }
        if len(by_seed) < len(pairs):
            reasons += (f"trials have no {metric}",)
        has_answers = bool(pairs) and all("correct" in row for each in pairs for row in each)
        answers = None
        if metric == "quality" and has_answers:
            first, second = (
                np.mean([np.asarray(row["correct"], float) for row in side], axis=0)
                for side in zip(*pairs, strict=True)
            )
            answers = (first - second, pairs[0][0].get("groups"))
        elif metric == "quality" and pairs:
            reasons += ("answers were not kept, so that other questions cannot be judged",)
        return _Difference(by_seed, reasons, answers)

    def ratio(self, comparison: Ratio, pair: Pair) -> _Sample:
        """The logarithm of the first cell's best value over the second's, a number a seed."""
        sides, reasons = self._sides(pair[1:], with_best=True)
        limits = (math.log(comparison.low), math.log(comparison.high))
        if len(sides) < 2:
            return _Sample((), limits, reasons)
        reasons += self._budgets(*sides)
        seeds = _common_seeds(*(side.best for side in sides))
        numbers = [math.log(sides[0].best[s].value / sides[1].best[s].value) for s in seeds]
        return _Sample(numbers, limits, reasons)

    def trend(self, comparison: Trend, line: Sequence[tuple[float, Cell]]) -> _Sample:
        """The slope over the axis's binary logarithm, a number a seed."""
        is_best, limits = comparison.of == "best", comparison.limits
        sides, reasons = self._sides([cell for _, cell in line], with_best=is_best)
        reference = comparison.reference(self._resolver.cells)
        offs = [reference[number] for number, _ in line] if reference else []
        off_sides, off_reasons = self._sides(offs)
        reasons = tuple(dict.fromkeys(reasons + off_reasons))
        if len(sides) < len(line) or len(off_sides) < len(offs):
            return _Sample((), limits, reasons)
        for side, off in zip(sides, off_sides, strict=False):  # of none, where nothing is taken off
            reasons += self._budgets(side, off)
        every = [*sides, *off_sides]
        seeds = _common_seeds(*(side.best if is_best else side.rows for side in every))
        metric = comparison.metric or self._resolver.study.metric
        doublings = np.log2([number for number, _ in line])
        slopes = []
        for seed in seeds:
            heights = [self._height(side, seed, metric, is_best) for side in every]
            known = [height for height in heights if height is not None]
            if len(known) < len(heights):
                return _Sample((), limits, (*reasons, f"trials have no {metric}"))
            rise = np.asarray(known[: len(sides)])
            rise -= np.asarray(known[len(sides) :]) if off_sides else 0.0
            slopes.append(float(np.polyfit(doublings, rise, 1)[0]))
        return _Sample(slopes, limits, reasons)

    def _height(self, side: _Side, seed: int, metric: str, is_best: bool) -> float | None:
        if is_best:
            return math.log2(side.best[seed].value)
        return number_of(self._resolver, self._rows, side.rows[seed], metric)

    def _sides(
        self, cells: Sequence[Cell], with_best: bool = False
    ) -> tuple[list[_Side], tuple[str, ...]]:
        """(the cells' results, one less for each that was left out; why there is no verdict)."""
        sides = [side for cell in cells if (side := self._side(cell, with_best)) is not None]
        reasons = tuple(dict.fromkeys(reason for side in sides for reason in side.reasons))
        if len(sides) < len(cells):
            reasons += ("an earlier stage left one of them out",)
        return sides, reasons

    def _side(self, cell: Cell, with_best: bool) -> _Side | None:
        for choice in self._progress.choices[self._stage.name]:
            if choice.cell != cell:
                continue
            by_seed = {
                seed: find_row(
                    self._resolver,
                    self._rows,
                    self._resolver.trial(self._stage, cell, choice.best, seed),
                )
                for seed in self._stage.seeds
            }
            finished_rows = {
                seed: row for seed, row in by_seed.items() if row and row["status"] == FINISHED
            }
            reasons = []
            if choice.at_edge:
                reasons.append(f"the best value of {cell.label} lies at an edge")
            if len(finished_rows) < len(self._stage.seeds):
                reasons.append(f"not every trial of {cell.label} has finished")
            best: Mapping[int, BestValue] = {}
            if with_best:
                best, reason = best_values(self._resolver, self._rows, self._progress, cell)
                reasons += [reason] * bool(reason)
            return _Side(choice, finished_rows, best, tuple(reasons))
        return None  # left out by an earlier stage

    def _budgets(self, first: _Side, second: _Side) -> tuple[str, ...]:
        """Why two cells do not compare: they read different amounts of text."""
        if self._resolver.study.equal is not None or not (first.rows and second.rows):
            return ()
        costs = [next(iter(side.rows.values())).get("tokens", 0) for side in (first, second)]
        # what trains nothing reads nothing: it is compared on the same labels
        if not all(costs) or abs(costs[0] - costs[1]) <= _BUDGET_TOLERANCE * max(costs):
            return ()
        return (f"they read {costs[0]:.3g} and {costs[1]:.3g} tokens",)


def _common_seeds(*sides: Mapping[int, object]) -> list[int]:
    return sorted(set.intersection(*(set(side) for side in sides)))


def _judge(comparison: AnyComparison, label: str, sample: _Sample) -> Verdict:
    """The verdict of a comparison, without its word: that needs the correction over all claims."""
    numbers, reasons = np.asarray(sample.numbers, float), sample.reasons
    if len(numbers) < MIN_SEEDS:
        reasons += (f"{len(numbers)} seeds are fewer than {MIN_SEEDS}",)
    if len(numbers) < 2:
        return Verdict(comparison, label, "none", reasons=reasons)
    p_value = (
        mean_differs(numbers) if sample.limits is None else mean_within(numbers, sample.limits)
    )
    if sample.answers is not None:
        p_value = max(p_value, _over_questions(*sample.answers, sample.limits))
    estimate = mean_interval(numbers)
    detectable, seeds_needed = None, None
    if deviation := float(numbers.std(ddof=1)):
        detectable = detectable_difference(numbers)
        seeds_needed = repeats_needed(_distance(float(numbers.mean()), sample.limits) / deviation)
    if (base := _logarithm_base(comparison)) is not None:
        value, low, high = (base**x for x in (estimate.value, estimate.low, estimate.high))
        estimate = Estimate(value, low, high, estimate.n)
        detectable = None if detectable is None else base**detectable
    return Verdict(
        comparison,
        label,
        "none" if reasons else "",
        estimate,
        None if reasons else p_value,
        detectable,
        seeds_needed,
        reasons,
    )


def _logarithm_base(comparison: AnyComparison) -> float | None:
    """Of the logarithm that its numbers are; None: they are none."""
    if isinstance(comparison, Ratio):
        return math.e
    return 2.0 if isinstance(comparison, Trend) and comparison.of == "best" else None


def mean_differs(numbers: np.ndarray) -> float:
    """p of "the mean is zero", Student's t; 1 where all are zero."""
    if not numbers.any():
        return 1.0
    return float(stats.ttest_1samp(numbers, 0.0).pvalue) if numbers.std() else 0.0


def mean_within(numbers: np.ndarray, limits: tuple[float, float]) -> float:
    """p of "the mean lies on the other side of its nearest limit", whichever side it lies on.

    Inside: two one-sided t-tests (Schuirmann 1987). Outside: the two-sided test of that limit.
    """
    if not numbers.std():
        return 0.0
    return _within(float(numbers.mean()), float(stats.sem(numbers)), len(numbers) - 1, limits)


def _within(mean: float, error: float, freedom: int, limits: tuple[float, float]) -> float:
    distance = _distance(mean, limits)
    p_value = float(stats.t.sf(abs(distance) / error, freedom))
    return p_value if distance >= 0 else 2 * p_value


def _distance(mean: float, limits: tuple[float, float] | None) -> float:
    """How far a mean lies from its nearest limit, below zero outside; without limits, from zero."""
    return mean if limits is None else min(mean - limits[0], limits[1] - mean)


def _over_questions(
    differences: np.ndarray, groups: Sequence[int] | None, limits: tuple[float, float] | None
) -> float:
    """p over questions: right answers, averaged over seeds, of one cell minus the other."""
    if limits is None:
        return swap_test(differences, groups)
    mean, error, freedom = cluster_mean(differences, groups)
    return _within(mean, error, freedom, limits) if error else 0.0


def _word(study: Study, verdict: Verdict) -> Verdict:
    """With its word, by the corrected p."""
    if verdict.word or verdict.estimate is None or verdict.p_value is None:
        return verdict
    comparison, value = verdict.comparison, verdict.estimate.value
    if isinstance(comparison, Comparison) and comparison.margin is None:
        holds = (value < 0) == ((comparison.goal or study.goal) == "lowest")
    elif isinstance(comparison, Comparison):
        holds = abs(value) < (comparison.margin or 0.0)
    else:
        holds = comparison.low < value < comparison.high
    word = "supported" if holds else "refuted"
    if verdict.p_value >= LEVEL:
        word = "inconclusive"
    return dataclasses.replace(verdict, word=word)
