"""The advice: a pure function of what was measured.

1. The best way is the one with the highest mean on the rows that all were asked.
2. Ways that the interval of the paired difference does not tell from it are as good.
3. Of these the cheapest is advised: what it takes to build it, and the requests that are stated.
   With a target, the cheapest of the ways that meet it; where none does, as without one.
4. The runner-up is the best of the others.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from research.decisions.costs import BuildCost, Prices
from research.decisions.screening import difference
from research.reports.statistics import Estimate

RESAMPLES = 2000
_SEED = 0


@dataclasses.dataclass(frozen=True)
class Line:
    """What the advice is made of: a way that was asked all rows."""

    name: str
    # [N] the metric of each row
    scores: np.ndarray
    build: BuildCost
    # of one request, at the machine's speed
    request_seconds: float

    @property
    def mean(self) -> float:
        return float(self.scores.mean())


@dataclasses.dataclass(frozen=True)
class Volume:
    """How many requests a way is built for."""

    a_day: float = 1000.0
    days: float = 90.0

    @property
    def total(self) -> float:
        return self.a_day * self.days


@dataclasses.dataclass(frozen=True)
class Crossing:
    """At how many requests a day another way becomes the cheaper one."""

    way: str
    a_day: float
    # whether it is so from there on; else below
    is_above: bool


@dataclasses.dataclass(frozen=True)
class Advice:
    """Which way to take, and why."""

    way: str
    best: str
    runner_up: str | None
    # not told apart from the best, itself included, the cheapest first
    equals: tuple[str, ...]
    # name -> what it costs for the stated requests
    totals: dict[str, float]
    # the advised way less the runner-up
    lead: Estimate | None
    # how far the advised way may lie under the best of all, with 95% confidence
    regret: float
    # share of resamples of the rows in which no way is better
    sureness: float
    # None: no target is stated
    meets_target: bool | None
    # as good ways that are cheaper for other volumes
    crossings: tuple[Crossing, ...] = ()
    reasons: tuple[str, ...] = ()


def total_cost(line: Line, prices: Prices, volume: Volume) -> float:
    """Of building a way and of the stated requests."""
    return prices.build(line.build) + prices.requests(volume.total, line.request_seconds)


def advise(
    lines: Sequence[Line],
    prices: Prices,
    volume: Volume,
    target: float | None = None,
    groups: Sequence[str] | None = None,
) -> Advice:
    """The advice; the order of the lines decides nothing.

    Raises:
      ValueError: no line.
    """
    if not lines:
        raise ValueError("no way was asked all rows: there is nothing to advise")
    lines = sorted(lines, key=lambda line: line.name)
    totals = {line.name: total_cost(line, prices, volume) for line in lines}

    def price(line: Line) -> tuple[float, float, str]:
        return totals[line.name], -line.mean, line.name

    best = min(lines, key=lambda line: (-line.mean, *price(line)))
    gaps = {line.name: difference(line.scores, best.scores, groups) for line in lines}
    equals = sorted((line for line in lines if gaps[line.name].high >= 0), key=price)
    meeting = [line for line in lines if target is not None and line.mean >= target]
    way = min(meeting, key=price) if meeting else equals[0]
    others = [line for line in lines if line.name != way.name]
    runner_up = min(others, key=lambda line: (-line.mean, *price(line)), default=None)
    regret, sureness = _resample(lines, way, groups)
    return Advice(
        way=way.name,
        best=best.name,
        runner_up=None if runner_up is None else runner_up.name,
        equals=tuple(line.name for line in equals),
        totals=totals,
        lead=None if runner_up is None else difference(way.scores, runner_up.scores, groups),
        regret=regret,
        sureness=sureness,
        meets_target=None if target is None else bool(meeting),
        crossings=_crossings(way, meeting or equals, prices, volume),
        reasons=tuple(_reasons(way, best, equals, gaps, totals, prices, target, bool(meeting))),
    )


def _reasons(
    way: Line,
    best: Line,
    equals: Sequence[Line],
    gaps: dict[str, Estimate],
    totals: dict[str, float],
    prices: Prices,
    target: float | None,
    is_met: bool,
) -> list[str]:
    count = len(way.scores)
    if target is not None and is_met:
        reasons = [f"{way.name} is the cheapest way that meets the target of {target:.0%}"]
    elif target is not None:
        reasons = [
            f"no way meets the target of {target:.0%}: the best of them, {best.name}, has "
            f"{best.mean:.1%} on {count} rows"
        ]
    else:
        reasons = []
    if way.name == best.name:
        reasons.append(f"{way.name} has the highest mean, {way.mean:.1%} on {count} rows")
    elif gaps[way.name].high >= 0:
        points = gaps[way.name].scaled(100)
        reasons.append(
            f"the highest mean is that of {best.name}, {best.mean:.1%}, and {count} rows do not "
            f"tell {way.name} from it ({points:+.1f} points)"
        )
    if len(equals) > 1 and way in equals:
        dear = [line for line in equals if line.name != way.name]
        costs = f"{totals[way.name]:.3g} {prices.unit} against {totals[dear[0].name]:.3g}"
        reasons.append(
            f"of {len(equals)} ways that are as good it is the cheapest for the stated requests: "
            f"{costs} of {dear[0].name}"
        )
    return reasons


def _resample(
    lines: Sequence[Line], way: Line, groups: Sequence[str] | None
) -> tuple[float, float]:
    """(how far the way may lie under the best, share of resamples in which none is better).

    Whole groups are drawn (cluster bootstrap).
    """
    table = np.stack([line.scores for line in lines], axis=1)  # [N,W]
    ids = np.arange(len(table)) if groups is None else np.unique(groups, return_inverse=True)[1]
    sums = np.zeros((ids.max() + 1, table.shape[1]))
    np.add.at(sums, ids, table)
    sizes = np.bincount(ids).astype(float)
    count = len(sizes)
    draws = np.random.default_rng(_SEED).multinomial(
        count, np.full(count, 1 / count), size=RESAMPLES
    )
    means = draws @ sums / (draws @ sizes)[:, None]  # [R,W]
    own = means[:, [line.name for line in lines].index(way.name)]
    regrets = means.max(axis=1) - own
    # roundings of sums that differ in their order are no difference
    return float(np.quantile(regrets, 0.95)), float((regrets < 1e-12).mean())


def _crossings(
    way: Line, rivals: Sequence[Line], prices: Prices, volume: Volume
) -> tuple[Crossing, ...]:
    """Rivals that another volume makes the cheaper ones, by how near it is."""
    result = []
    for line in rivals:
        building = prices.build(line.build) - prices.build(way.build)
        saving = prices.requests(1, way.request_seconds - line.request_seconds)
        if line.name == way.name or building * saving <= 0:
            continue
        result.append(Crossing(line.name, building / saving / volume.days, building > 0))
    return tuple(
        sorted(result, key=lambda each: abs(math.log(each.a_day / max(volume.a_day, 1e-9))))
    )
