"""What a study's comparisons say: supported, refuted or inconclusive, and when nothing may be said.

Two forms are compared at each point of the axes over the same seeds, each at the best value of its
own sweep. The test over seeds is Student's paired t. Where both answered the same questions, a test
over questions (permutation of near-duplicate clusters, answers averaged over seeds) is made too and
the larger p counts: the difference must hold over other seeds and over other questions. Holm's
correction is over all comparisons of the study.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

from research.reports.statistics import (
    Estimate,
    cluster_mean,
    detectable_difference,
    holm,
    mean_interval,
    swap_test,
)
from research.studies.ledger import FINISHED, Row
from research.studies.results import find_row
from research.studies.schedule import Choice, Progress
from research.studies.study import Comparison, Study
from research.studies.trials import Resolver

LEVEL = 0.05
MIN_SEEDS = 3
# how far the compute of two forms may be apart, where the study sets no budget of its own
_BUDGET_TOLERANCE = 0.1


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What one comparison says at one point of the axes."""

    comparison: Comparison
    # the point, as tables name it
    label: str
    # supported, refuted or inconclusive; "none" where `reasons` forbid one
    word: str
    # `better` minus `worse`, in the metric, with the interval over seeds; None: too few results
    difference: Estimate | None = None
    # two-sided, after Holm's correction; of a margin, that the difference is at least as large
    p_value: float | None = None
    # the smallest difference that four of five such studies would see
    detectable: float | None = None
    # why there is no verdict
    reasons: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class _Side:
    """One of the two forms: what its sweep found, and its finished trials."""

    choice: Choice
    rows: Mapping[int, Row]  # by seed


def verdicts(resolver: Resolver, rows: Mapping[str, Row], progress: Progress) -> list[Verdict]:
    """The verdict of every comparison at every point of the axes; none before the study's end."""
    study = resolver.study
    if not progress.is_finished:
        return []
    judged = [
        _compare(study, comparison, *(_side(resolver, rows, progress, form, n) for form in pair))
        for comparison in study.comparisons
        for pair in [(comparison.better, comparison.worse)]
        for n in range(len(study.axes))
    ]
    tested = [verdict for verdict in judged if verdict.p_value is not None]
    corrected = dict(
        zip(map(id, tested), holm([verdict.p_value or 0.0 for verdict in tested]), strict=True)
    )
    return [
        _word(study, dataclasses.replace(verdict, p_value=corrected.get(id(verdict))))
        for verdict in judged
    ]


def _side(
    resolver: Resolver, rows: Mapping[str, Row], progress: Progress, form: str, number: int
) -> _Side | None:
    stage = resolver.study.stages[-1]
    for choice in progress.choices[stage.name]:
        if (choice.cell.form, choice.cell.number) == (form, number):
            trials = [resolver.trial(stage, choice.cell, choice.best, s) for s in stage.seeds]
            by_seed = {trial.seed: find_row(resolver, rows, trial) for trial in trials}
            finished = {
                seed: row for seed, row in by_seed.items() if row and row["status"] == FINISHED
            }
            return _Side(choice, finished)
    return None  # left out by an earlier stage


def _compare(
    study: Study, comparison: Comparison, better: _Side | None, worse: _Side | None
) -> Verdict:
    if better is None or worse is None:
        return Verdict(comparison, "", "none", reasons=("an earlier stage left one of them out",))
    label = dataclasses.replace(better.choice.cell, form="").label
    label = "" if label == "all" else label
    seeds = sorted(set(better.rows) & set(worse.rows))
    reasons = _reasons(study, better, worse, seeds)
    if len(seeds) < 2:
        return Verdict(comparison, label, "none", reasons=reasons)
    metric = comparison.metric or study.metric
    pairs = [(better.rows[seed], worse.rows[seed]) for seed in seeds]
    differences = np.asarray([float(b[metric]) - float(w[metric]) for b, w in pairs])
    difference = mean_interval(differences)
    detectable = detectable_difference(differences) if differences.std() else None
    has_answers = all("correct" in row for pair in pairs for row in pair)
    if metric == "quality" and not has_answers:
        reasons += ("answers were not kept, so that other questions cannot be judged",)
    if comparison.margin is not None:
        p_value = _outside(differences, comparison.margin)
    else:
        p_value = _differs(differences)
    if metric == "quality" and has_answers:
        p_value = max(p_value, _over_questions(pairs, comparison.margin))
    return Verdict(
        comparison,
        label,
        "none" if reasons else "",
        difference,
        None if reasons else p_value,
        detectable,
        reasons,
    )


def _reasons(study: Study, better: _Side, worse: _Side, seeds: Sequence[int]) -> tuple[str, ...]:
    """Why no verdict may be given."""
    reasons = []
    for side in (better, worse):
        if side.choice.at_edge:
            reasons.append(f"the best value of {side.choice.cell.label} lies at an edge")
        if len(side.rows) < len(study.stages[-1].seeds):
            reasons.append(f"not every trial of {side.choice.cell.label} has finished")
    if len(seeds) < MIN_SEEDS:
        reasons.append(f"{len(seeds)} seeds are fewer than {MIN_SEEDS}")
    if study.equal is None and better.rows and worse.rows:
        costs = [next(iter(side.rows.values())).get("tokens", 0) for side in (better, worse)]
        if abs(costs[0] - costs[1]) > _BUDGET_TOLERANCE * max(costs):
            reasons.append(f"they read {costs[0]:.3g} and {costs[1]:.3g} tokens")
    return tuple(reasons)


def _differs(differences: np.ndarray) -> float:
    """p of "the mean is zero", Student's paired t; 1 where all are zero."""
    if not differences.any():
        return 1.0
    return float(stats.ttest_1samp(differences, 0.0).pvalue) if differences.std() else 0.0


def _outside(differences: np.ndarray, margin: float) -> float:
    """p of "they differ by the margin or more": two one-sided t-tests (Schuirmann 1987)."""
    if not differences.std():
        return float(abs(differences[0]) >= margin)
    above = stats.ttest_1samp(differences, -margin, alternative="greater").pvalue
    below = stats.ttest_1samp(differences, margin, alternative="less").pvalue
    return float(max(above, below))


def _over_questions(pairs: Sequence[tuple[Row, Row]], margin: float | None) -> float:
    """p over questions: right answers, averaged over seeds, of one form minus the other."""
    better = np.mean([np.asarray(b["correct"], float) for b, _ in pairs], axis=0)
    worse = np.mean([np.asarray(w["correct"], float) for _, w in pairs], axis=0)
    groups = pairs[0][0].get("groups")
    if margin is None:
        return swap_test(better - worse, groups)
    mean, error, freedom = cluster_mean(better - worse, groups)
    if not error:
        return float(abs(mean) >= margin)
    above, below = (mean + margin) / error, (margin - mean) / error
    return float(stats.t.sf(min(above, below), freedom))


def _word(study: Study, verdict: Verdict) -> Verdict:
    """With its word, by the corrected p."""
    if verdict.word or verdict.difference is None or verdict.p_value is None:
        return verdict
    value = verdict.difference.value
    if verdict.comparison.margin is not None:
        # the interval over seeds is wholly outside: the claim of equality is refuted
        margin = verdict.comparison.margin
        outside = verdict.difference.low > margin or verdict.difference.high < -margin
        word = "refuted" if outside else "inconclusive"
        word = "supported" if verdict.p_value < LEVEL else word
    elif verdict.p_value >= LEVEL:
        word = "inconclusive"
    else:
        goal = verdict.comparison.goal or study.goal
        word = "supported" if (value < 0) == (goal == "lowest") else "refuted"
    return dataclasses.replace(verdict, word=word)
