"""Where a sweep's best value lies, between the values that ran: one number for each seed.

A parabola through the metric at the best value and its two neighbours, over the logarithm of the
swept value, is lowest (or highest) there. It is given only where the grid carries it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from research.studies.ledger import Row
from research.studies.results import lookup_in
from research.studies.schedule import Progress
from research.studies.trials import Cell, Resolver

# values of the sweep around the best one that a parabola needs
MIN_VALUES = 3


class BestValue(NamedTuple):
    """The best value by one seed, and the neighbours in the grid between which it lies."""

    value: float
    low: float
    high: float


def best_values(
    resolver: Resolver, rows: Mapping[str, Row], progress: Progress, cell: Cell
) -> tuple[dict[int, BestValue], str]:
    """(seed -> best value; why there are none or not all, else "").

    Of the last stage that ran three values of the sweep or more in this cell.
    """
    study, lookup = resolver.study, lookup_in(resolver, rows)
    sign = 1.0 if study.goal == "lowest" else -1.0
    for stage in reversed(study.stages):
        grids: dict[int, dict[float, float]] = {}
        for trial in progress.trials:
            if (trial.stage, trial.cell) == (stage.name, cell) and trial.value is not None:
                metric = lookup(trial)
                grids.setdefault(trial.seed, {})[trial.value] = sign * (
                    math.inf if metric is None else metric
                )
        if max((len(grid) for grid in grids.values()), default=0) < MIN_VALUES:
            continue
        by_seed = {seed: lowest_point(grid) for seed, grid in sorted(grids.items())}
        outside = [str(seed) for seed, value in by_seed.items() if value is None]
        reason = (
            f"the best value of {cell.label} is not inside the values that stage {stage.name} ran "
            f"with seeds {', '.join(outside)}: give the stage before it more keep_values"
        )
        inside = {seed: value for seed, value in by_seed.items() if value is not None}
        return inside, reason if outside else ""
    reason = (
        f"no stage ran {MIN_VALUES} values of the sweep for {cell.label}: give the stage before "
        f"the last keep_values={MIN_VALUES} or more"
    )
    return {}, reason


def lowest_point(grid: Mapping[float, float]) -> BestValue | None:
    """Where the parabola through the lowest point and its neighbours is lowest.

    Args:
      grid: positive value -> metric; one that is not finite does not count.

    Returns None with fewer than three points, or where they do not enclose a lowest one.
    """
    values = sorted(value for value, metric in grid.items() if math.isfinite(metric))
    if len(values) < MIN_VALUES:
        return None
    best = min(range(len(values)), key=lambda place: grid[values[place]])
    middle = min(max(best, 1), len(values) - 2)
    near = values[middle - 1 : middle + 2]
    x = np.log(near) - math.log(near[1])
    curvature, slope, _ = np.polyfit(x, [grid[value] for value in near], 2)
    if curvature <= 0:
        return None
    vertex = -slope / (2 * curvature)
    if not x[0] < vertex < x[2]:
        return None
    return BestValue(near[1] * math.exp(vertex), near[0], near[2])
