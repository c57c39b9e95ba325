"""Screening: ways are asked more and more of the same rows, and those that lose are asked no more.

After each part of the rows, a way goes whose paired difference to the best so far lies under zero
with its whole interval; of those that are left, the better half goes on (successive halving:
Jamieson 2016, arXiv:1502.07943). What happened to each is said.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from research.reports.statistics import Estimate, mean_interval, paired_difference

# Of a way's rows so far, all that can be paired.
Scores = np.ndarray


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a way."""

    name: str
    # of how many rows it was asked
    rows: int
    # why it was asked no more; empty: it was asked all
    reason: str = ""


def difference(a: Scores, b: Scores, groups: Sequence[str] | None = None) -> Estimate:
    """The first less the second on the same rows [N], with its interval of 95%."""
    if np.isin([a, b], (0, 1)).all():
        return paired_difference(a, b, groups=groups).difference
    if len(a) < 2:
        return Estimate(float(a[0] - b[0]), -math.inf, math.inf, len(a))
    return mean_interval(a - b, groups=groups)


def is_under(a: Scores, b: Scores, groups: Sequence[str] | None = None) -> bool:
    """Whether the first lies under the second with its whole interval."""
    return difference(a, b, groups).high < 0


def screen(
    names: Sequence[str],
    parts: int,
    ask: Callable[[str, int], Scores | None],
    groups: Callable[[int], Sequence[str] | None],
    rivals: Mapping[str, Scores] | None = None,
    drops: bool = True,
) -> list[Outcome]:
    """Asks ways part by part.

    Args:
      names: of the ways, in the order in which they are asked.
      parts: how many parts there are.
      ask: (way, part) -> all scores of the way so far, of the parts up to this one; None: the
        budget is spent, or the way cannot be asked.
      groups: number of rows -> the group of each; None: they have none.
      rivals: ways that have all rows, which are not asked: those that lose to them go.
      drops: whether ways go at all; else all are asked to the end.

    Returns:
      What became of each, in the order of `names`.
    """
    rivals = rivals or {}
    alive, scores = list(names), dict[str, Scores]()
    outcomes: dict[str, Outcome] = {}
    for part in range(parts):
        for name in list(alive):
            answer = ask(name, part)
            if answer is None:
                alive.remove(name)
                rows = len(scores[name]) if name in scores else 0
                outcomes[name] = Outcome(name, rows, "the budget was spent")
            else:
                scores[name] = answer
        if not alive or part == parts - 1:
            break
        if not drops:
            continue
        count = len(scores[alive[0]])
        own_groups = groups(count)
        table = {name: scores[name] for name in alive}
        table |= {name: rival[:count] for name, rival in rivals.items()}
        best = max(table, key=lambda name: float(table[name].mean()))
        for name in list(alive):
            gap = difference(table[name], table[best], own_groups)
            if name != best and gap.high < 0:
                alive.remove(name)
                points = gap.scaled(100)
                outcomes[name] = Outcome(
                    name, count, f"{points:+.0f} points to {best} on {count} rows"
                )
        order = sorted(alive, key=lambda name: (-float(table[name].mean()), names.index(name)))
        for rank, name in enumerate(order):
            if rank >= math.ceil(len(order) / 2):
                alive.remove(name)
                place = f"{rank + 1}. of {len(order)} on {count} rows"
                outcomes[name] = Outcome(name, count, f"{place}, not told apart from the best")
    for name in alive:
        outcomes[name] = Outcome(name, len(scores[name]))
    return [outcomes[name] for name in names]
