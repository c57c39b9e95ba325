"""Learning curves over labels: a power law, and what more labels would buy.

The share of wrong answers is taken to fall as `a n^-b` (Hestness 2017, arXiv:1712.00409; without
its floor, which three points do not tell). The interval is a bootstrap over the questions, whole
clusters together, with the scatter of the points around the law added; one seed's luck is in it
only as far as it shows there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from research.reports.statistics import Estimate

RESAMPLES = 2000
_SEED = 0


@dataclasses.dataclass(frozen=True)
class LabelCurve:
    """A power law through what was measured at some numbers of labels."""

    name: str
    # [C] rising
    labels: tuple[int, ...]
    # [C] mean of the metric
    means: tuple[float, ...]
    # of the measured points; the first draw is the fit itself
    slopes: np.ndarray  # [1+R] b
    offsets: np.ndarray  # [1+R] ln a
    # scatter of the points around the law, in ln of the error
    scatter: float

    def predict(self, labels: float) -> Estimate:
        """The metric with so many labels, with an interval of 95%."""
        return _interval(1 - self._errors(labels))

    def gain(self, more: int) -> Estimate:
        """What so many labels more than the most that was measured are worth."""
        most = self.labels[-1]
        return _interval(self._errors(most) - self._errors(most + more))

    def _errors(self, labels: float) -> np.ndarray:
        """[1+R] share of wrong answers."""
        place = np.log(labels)
        noise = np.random.default_rng(_SEED + 1).normal(size=len(self.slopes))
        noise[0] = 0.0
        points = np.log(self.labels)
        spread = ((points - points.mean()) ** 2).sum()
        leverage = 1 / len(points) + (place - points.mean()) ** 2 / spread
        scatter = self.scatter * np.sqrt(leverage) * noise
        return np.exp(np.minimum(self.offsets - self.slopes * place + scatter, 0.0))


def fit_curve(
    name: str, labels: Sequence[int], scores: np.ndarray, groups: Sequence[str] | None = None
) -> LabelCurve | None:
    """The law through some points; None where there are fewer than two.

    Args:
      labels: [C] rising, positive.
      scores: [C,N] the metric of each question, from 0 to 1.
      groups: [N] questions that are not independent; None: all are.
    """
    if len(labels) < 2:
        return None
    ids = np.arange(scores.shape[1])
    if groups is not None:
        ids = np.unique(groups, return_inverse=True)[1]
    wrong = np.zeros((ids.max() + 1, len(labels)))
    np.add.at(wrong, ids, 1 - scores.T)
    sizes = np.bincount(ids).astype(float)
    count = len(sizes)
    draws = np.random.default_rng(_SEED).multinomial(count, np.full(count, 1 / count), RESAMPLES)
    weights = np.concatenate([np.ones((1, count)), draws])
    errors = (weights @ wrong) / (weights @ sizes)[:, None]  # [1+R,C]
    # none wrong is less than one of twice as many
    logs = np.log(np.maximum(errors, 0.5 / len(ids)))
    points = np.log(np.asarray(labels, float))
    centered = points - points.mean()
    slopes = -(logs @ centered) / (centered @ centered)
    offsets = logs.mean(axis=1) + slopes * points.mean()
    rest = logs[0] - (offsets[0] - slopes[0] * points)
    freedom = max(1, len(labels) - 2)
    return LabelCurve(
        name=name,
        labels=tuple(labels),
        means=tuple((1 - errors[0]).tolist()),
        slopes=slopes,
        offsets=offsets,
        scatter=float(np.sqrt((rest**2).sum() / freedom)),
    )


def _interval(values: np.ndarray) -> Estimate:
    low, high = np.quantile(values, (0.025, 0.975))
    value = float(values[0])
    return Estimate(value, min(value, float(low)), max(value, float(high)), len(values) - 1)
