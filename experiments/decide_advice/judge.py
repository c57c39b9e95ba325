"""How right an advice was: against the test rows, which every way was asked."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from research.decisions.screening import difference
from research.reports.statistics import Estimate, proportion_interval


@dataclasses.dataclass(frozen=True)
class Judgment:
    """An advice in one setting."""

    setting: str
    advised: str
    # the highest mean on the test rows
    best: str
    # the advised way less the best on the same test rows; not above zero
    regret: Estimate
    # what it costs over the cheapest way that is as good as the best on the test rows
    cost_ratio: float
    # of all ways, on the test rows
    ways: int

    @property
    def is_best(self) -> bool:
        return self.advised == self.best

    @property
    def is_as_good(self) -> bool:
        """Whether the test rows do not tell it from the best."""
        return self.is_best or self.regret.high >= 0


def judge(
    setting: str,
    advice: Mapping[str, Any],
    every: Mapping[str, Any],
    groups: Sequence[str] | None = None,
) -> Judgment:
    """The judgment of an advice.

    Args:
      advice: what `Decision.to_dict` gives of the screened climb.
      every: of the climb in which every way was asked to the end, and the test.
      groups: of the test rows.

    Raises:
      ValueError: the advised way was not asked the test.
    """
    scores = {test["way"]: np.asarray(test["scores"]) for test in [*advice["test"], *every["test"]]}
    advised = advice["advice"]["way"]
    if advised not in scores:
        raise ValueError(f"{setting}: {advised} was not asked the test rows")
    best = min(scores, key=lambda name: (-float(scores[name].mean()), name))
    gaps = {name: difference(each, scores[best], groups) for name, each in scores.items()}
    totals = {**advice["advice"]["totals"], **every["advice"]["totals"]}
    equals = [name for name, gap in gaps.items() if name == best or gap.high >= 0]
    cheapest = min(totals[name] for name in equals)
    return Judgment(
        setting=setting,
        advised=advised,
        best=best,
        regret=gaps[advised],
        cost_ratio=totals[advised] / cheapest if cheapest else 1.0,
        ways=len(scores),
    )


def summarize(judgments: Sequence[Judgment]) -> dict[str, Any]:
    """What all of them come to."""
    right = (sum(each.is_as_good for each in judgments), len(judgments))
    return {
        "settings": len(judgments),
        "best": sum(each.is_best for each in judgments),
        "as_good": proportion_interval(right),
        "mean_regret": float(np.mean([-each.regret.value for each in judgments])),
        "worst_regret": float(max(-each.regret.value for each in judgments)),
        "median_cost_ratio": float(np.median([each.cost_ratio for each in judgments])),
    }
