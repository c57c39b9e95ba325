"""Intervals and paired tests: the one module that every table of results uses.

Rows that are near duplicates of each other are not independent. Every function therefore takes
`groups`, one cluster id per row; rows of one cluster are then resampled together (the cluster
bootstrap, Davison and Hinkley 1997, section 3.8), which widens the interval as it should.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

RESAMPLES = 4999  # quantiles at 2.5% are then stable to about a tenth of the interval's width
SEED = 0  # the same numbers give the same interval in every report


@dataclass(frozen=True)
class Estimate:
    """A measured value, its interval and the number of rows behind it.

    `str` and `format` print all three numbers as `value [low, high]`. A format that ends in `%`
    prints percentages without the sign (the unit stands in the table's header):

    >>> f"{Estimate(0.713, 0.662, 0.759, 300):.1%}"
    '71.3 [66.2, 75.9]'
    """

    value: float
    low: float
    high: float
    n: int

    def scaled(self, factor: float) -> Estimate:
        """The same estimate in another unit, for example `scaled(100)` for percent."""
        low, high = sorted((self.low * factor, self.high * factor))
        return Estimate(self.value * factor, low, high, self.n)

    def __format__(self, spec: str) -> str:
        if spec.endswith("%"):
            return format(self.scaled(100), spec[:-1] + "f")
        spec = spec or ".3g"
        value, low, high = (format(x + 0.0, spec) for x in (self.value, self.low, self.high))
        return f"{value} [{low}, {high}]"

    def __str__(self) -> str:
        return format(self, "")


@dataclass(frozen=True)
class PairedDifference:
    """`a` minus `b` on the same rows.

    difference: with its interval. p_value: two-sided, of "neither is better".
    only_a, only_b: rows that one has right and the other wrong (0 where scores are not binary).
    """

    difference: Estimate
    p_value: float
    only_a: int
    only_b: int

    def __format__(self, spec: str) -> str:
        return format(self.difference, spec)

    def __str__(self) -> str:
        return f"{self.difference:+.3g} (p = {self.p_value:.2g})"


def proportion_interval(
    correct: ArrayLike | tuple[int, int],
    confidence: float = 0.95,
    groups: ArrayLike | None = None,
) -> Estimate:
    """The share of correct rows with Wilson's score interval (Wilson 1927).

    Args:
      correct: [N] booleans, or the tuple (number correct, number of rows).
      confidence: coverage of the interval, between 0 and 1.
      groups: [N] cluster ids; the interval is then a cluster bootstrap. Where every row is
        right, or every row is wrong, resampling has nothing to vary: the interval is then
        Wilson's for as many rows as there are clusters.

    Raises:
      ValueError: no rows, scores other than 0 and 1, or lengths that differ.
    """
    if isinstance(correct, tuple) and [type(x) for x in correct] == [int, int]:
        if groups is not None:
            raise ValueError("groups need one score per row: pass the [N] array, not (k, n)")
        count, rows = correct
        if not 0 <= count <= rows or rows == 0:
            raise ValueError(f"(correct, rows) = {correct} needs 0 <= correct <= rows and rows > 0")
        return _wilson(count, rows, confidence)
    flags = _binary(correct, "correct")
    if groups is None:
        return _wilson(int(flags.sum()), len(flags), confidence)
    sums, sizes = _by_group(groups, flags, np.ones(len(flags)))
    if flags.min() == flags.max():
        interval = _wilson(round(len(sums) * flags[0]), len(sums), confidence)
        return Estimate(interval.value, interval.low, interval.high, len(flags))
    estimate = ratio_interval(sums, sizes, confidence)
    return Estimate(estimate.value, max(0.0, estimate.low), min(1.0, estimate.high), len(flags))


def mean_interval(
    values: ArrayLike, confidence: float = 0.95, groups: ArrayLike | None = None
) -> Estimate:
    """The mean of `values` [N] with Student's t interval, or with `groups` the cluster bootstrap.

    For repeats of a run over seeds (N of 3 to 10) the t interval is the one that covers.

    Raises:
      ValueError: fewer than two values, or a value that is not finite.
    """
    numbers = _finite(values, "values")
    if groups is not None:
        estimate = ratio_interval(numbers, np.ones(len(numbers)), confidence, groups)
        return Estimate(estimate.value, estimate.low, estimate.high, len(numbers))
    if len(numbers) < 2:
        raise ValueError(f"an interval of a mean needs at least two values, got {len(numbers)}")
    mean = float(numbers.mean())
    error = float(scipy.stats.sem(numbers))
    reach = error * float(scipy.stats.t.ppf((1 + confidence) / 2, len(numbers) - 1))
    return Estimate(mean, mean - reach, mean + reach, len(numbers))


def share_interval(
    values: ArrayLike, confidence: float = 0.95, groups: ArrayLike | None = None
) -> Estimate:
    """The mean of shares [N], each between 0 and 1, with an interval that lies there too.

    Wilson's for as many rows of 0 and 1 as have its error, with Student's quantile (Korn and
    Graubard 1998, Survey Methodology 24:193); where nothing varies, for all rows or clusters.

    Raises:
      ValueError: fewer than two values or clusters, or a value outside of [0, 1].
    """
    numbers = _finite(values, "values")
    if numbers.min() < 0 or numbers.max() > 1:
        raise ValueError("shares must lie in [0, 1]")
    mean, error, degrees = cluster_mean(numbers, groups)
    rows = mean * (1 - mean) / error**2 if error > 0 else degrees + 1
    weight = float(scipy.stats.t.ppf((1 + confidence) / 2, degrees)) ** 2 / rows
    middle = (mean + weight / 2) / (1 + weight)
    reach = math.sqrt(weight * (mean * (1 - mean) + weight / 4)) / (1 + weight)
    return Estimate(mean, max(0.0, middle - reach), min(1.0, middle + reach), len(numbers))


def score_interval(values: ArrayLike, groups: ArrayLike | None = None) -> Estimate:
    """The mean of scores [N] with the interval of their kind: `proportion_interval` of 0 and 1,
    `share_interval` of what lies between, `mean_interval` of others, which say what they refuse."""
    numbers = _finite(values, "values")
    if np.isin(numbers, (0, 1)).all():
        return proportion_interval(numbers, groups=groups)
    if numbers.min() >= 0 and numbers.max() <= 1:
        return share_interval(numbers, groups=groups)
    return mean_interval(numbers, groups=groups)


def ratio_interval(
    numerators: ArrayLike,
    denominators: ArrayLike,
    confidence: float = 0.95,
    groups: ArrayLike | None = None,
) -> Estimate:
    """sum(numerators) / sum(denominators) with a BCa bootstrap interval (Efron 1987) over rows.

    This is how bits per byte is measured: numerators are each document's bits, denominators its
    bytes. Forgetting is the same with numerators `bits after - bits before`, hence paired.

    Args:
      numerators, denominators: [N], one pair per row (document).
      groups: [N] cluster ids; whole clusters are then resampled.

    Raises:
      ValueError: fewer than two rows or clusters, a negative denominator, or a zero total.
    """
    top, bottom = _finite(numerators, "numerators"), _finite(denominators, "denominators")
    rows = len(top)
    if len(bottom) != rows:
        raise ValueError(f"{rows} numerators but {len(bottom)} denominators")
    if bottom.min() < 0 or bottom.sum() == 0:
        raise ValueError("denominators must not be negative and their sum must not be zero")
    if groups is not None:
        top, bottom = _by_group(groups, top, bottom)
    if len(top) < 2:
        raise ValueError(f"an interval needs at least two rows or clusters, got {len(top)}")
    value = float(top.sum() / bottom.sum())
    if np.allclose(top, value * bottom, rtol=1e-12, atol=1e-12 * max(1.0, np.abs(top).max())):
        return Estimate(value, value, value, rows)  # every resample gives the same ratio

    result = scipy.stats.bootstrap(
        (top, bottom),
        _ratio,
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=max(1, 4_000_000 // len(top)),  # bounds memory at about 100 MB
        confidence_level=confidence,
        method="BCa",
        rng=np.random.default_rng(SEED),
    ).confidence_interval
    # BCa may put a bound on the wrong side of the point in very small samples.
    return Estimate(value, min(value, float(result.low)), max(value, float(result.high)), rows)


def paired_difference(
    correct_a: ArrayLike,
    correct_b: ArrayLike,
    confidence: float = 0.95,
    groups: ArrayLike | None = None,
) -> PairedDifference:
    """Share correct of `a` minus that of `b`, both scored on the same N rows.

    Interval: the square-and-add score interval for paired proportions (Newcombe 1998,
    Statistics in Medicine 17:2635, method 10). p: the exact McNemar test, a binomial test on the
    rows where the two differ. With `groups`: the cluster bootstrap, and a permutation test that
    swaps the two models' answers for whole clusters (McNemar's exact test for clusters of one).

    Args:
      correct_a, correct_b: [N] booleans, in the same row order.
      groups: [N] cluster ids.

    Raises:
      ValueError: lengths that differ, no rows, or scores other than 0 and 1.
    """
    a, b = _binary(correct_a, "correct_a"), _binary(correct_b, "correct_b")
    if len(a) != len(b):
        raise ValueError(f"paired scores need the same rows: {len(a)} in a, {len(b)} in b")
    only_a, only_b = int((a > b).sum()), int((b > a).sum())
    if groups is not None:
        (differences,) = _by_group(groups, a - b)
        if differences.any():
            interval = ratio_interval(a - b, np.ones(len(a)), confidence, groups)
        else:  # nothing to resample: at most Wilson's limit of 0 differences in G clusters
            unseen = _wilson(0, len(differences), confidence).high
            interval = Estimate(0.0, -unseen, unseen, len(a))
        return PairedDifference(interval, _swap_test(differences), only_a, only_b)
    both, neither = int((a * b).sum()), int(((1 - a) * (1 - b)).sum())
    interval = _newcombe(both, only_a, only_b, neither, confidence)
    discordant = only_a + only_b
    p_value = float(scipy.stats.binomtest(only_a, discordant, 0.5).pvalue) if discordant else 1.0
    return PairedDifference(interval, p_value, only_a, only_b)


def swap_test(differences: ArrayLike, groups: ArrayLike | None = None) -> float:
    """p of "neither is better": the signs of the clusters' summed differences are fair coins.

    Args:
      differences: [N] score of one minus that of the other, of any size, row by row.
      groups: [N] cluster ids; None: every row is its own.
    """
    numbers = _finite(differences, "differences")
    return _swap_test(numbers if groups is None else _by_group(groups, numbers)[0])


def cluster_mean(values: ArrayLike, groups: ArrayLike | None = None) -> tuple[float, float, int]:
    """(mean of values [N], its standard error, degrees of freedom), rows of a cluster together.

    The error is the linearized one of a ratio of cluster totals (Cochran 1977, equation 11.30).

    Raises:
      ValueError: fewer than two clusters.
    """
    numbers = _finite(values, "values")
    ids = np.arange(len(numbers)) if groups is None else groups
    sums, sizes = _by_group(ids, numbers, np.ones(len(numbers)))
    count, mean = len(sums), float(numbers.mean())
    if count < 2:
        raise ValueError(f"an error needs at least two rows or clusters, got {count}")
    residuals = sums - mean * sizes
    error = math.sqrt(count / (count - 1) * float(residuals @ residuals)) / len(numbers)
    return mean, error, count - 1


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for how many there are (Holm 1979): reject those under the level.

    They hold whatever the tests have to do with each other.
    """
    count = len(p_values)
    corrected, largest = [0.0] * count, 0.0
    for rank, index in enumerate(sorted(range(count), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (count - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def detectable_difference(differences: ArrayLike, level: float = 0.05, power: float = 0.8) -> float:
    """The smallest true mean that a paired t-test on so many differences finds with this power.

    differences: [N] of one study; their spread stands for that of another. The power is that of the
    noncentral t distribution (Cohen 1988, chapter 2), not of a normal one, as N is small.

    Raises:
      ValueError: fewer than two differences.
    """
    numbers = _finite(differences, "differences")
    if len(numbers) < 2:
        raise ValueError("the power of a test needs at least two differences")
    error, freedom = float(scipy.stats.sem(numbers)), len(numbers) - 1
    limit = float(scipy.stats.t.ppf(1 - level / 2, freedom))

    def missing_power(effect: float) -> float:
        return power - float(scipy.stats.nct.sf(limit, freedom, effect))

    return error * float(scipy.optimize.brentq(missing_power, 0.0, 50.0 * limit))


def repeats_needed(effect: float, level: float = 0.05, power: float = 0.8) -> int | None:
    """How many repeats a two-sided t-test needs to find an effect with this power.

    effect: the mean over the standard deviation. None: more than a thousand.
    """
    for count in range(2, 1001):
        limit = float(scipy.stats.t.ppf(1 - level / 2, count - 1))
        if float(scipy.stats.nct.sf(limit, count - 1, abs(effect) * math.sqrt(count))) >= power:
            return count
    return None


def _wilson(count: int, rows: int, confidence: float) -> Estimate:
    interval = scipy.stats.binomtest(count, rows).proportion_ci(confidence, method="wilson")
    value = count / rows
    return Estimate(value, min(value, float(interval.low)), max(value, float(interval.high)), rows)


def _newcombe(both: int, only_a: int, only_b: int, neither: int, confidence: float) -> Estimate:
    """Newcombe's method 10: Wilson limits of each proportion, joined with their correlation."""
    rows = both + only_a + only_b + neither
    a = _wilson(both + only_a, rows, confidence)
    b = _wilson(both + only_b, rows, confidence)
    margins = (both + only_a) * (only_b + neither) * (both + only_b) * (only_a + neither)
    covariance: float = both * neither - only_a * only_b
    if covariance > 0:  # Newcombe's continuity correction of the correlation
        covariance = max(covariance - rows / 2, 0.0)
    phi = covariance / margins**0.5 if margins else 0.0

    def reach(x: float, y: float) -> float:
        return max(x * x - 2 * phi * x * y + y * y, 0.0) ** 0.5

    value = (only_a - only_b) / rows
    low = value - reach(a.value - a.low, b.high - b.value)
    high = value + reach(a.high - a.value, b.value - b.low)
    return Estimate(value, max(low, -1.0), min(high, 1.0), rows)


def _swap_test(differences: NDArray[np.float64]) -> float:
    """p of "the sign of each cluster's difference is a fair coin"; exact for few clusters."""
    differences = differences[differences != 0]
    if len(differences) < 2:
        return 1.0  # one cluster alone is equally far from zero with either sign
    result = scipy.stats.permutation_test(
        (differences, -differences),
        lambda x, y, axis: x.sum(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=2 * RESAMPLES,
        batch=max(1, 4_000_000 // len(differences)),
        rng=np.random.default_rng(SEED),
    )
    return float(min(1.0, result.pvalue))


def _ratio(top: NDArray[np.float64], bottom: NDArray[np.float64], axis: int = -1) -> NDArray:
    return top.sum(axis=axis) / bottom.sum(axis=axis)


def _by_group(groups: ArrayLike, *columns: NDArray[np.float64]) -> tuple[NDArray, ...]:
    """Sum each column [N] within its cluster -> [G] each."""
    ids = np.asarray(groups)
    if ids.shape != columns[0].shape:
        raise ValueError(f"groups has shape {ids.shape}, the scores {columns[0].shape}")
    _, index = np.unique(ids, return_inverse=True)
    return tuple(np.bincount(index, weights=column) for column in columns)


def _finite(values: ArrayLike, name: str) -> NDArray[np.float64]:
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.ndim != 1 or len(numbers) == 0:
        raise ValueError(f"{name} must be one row of numbers, got shape {numbers.shape}")
    if not np.isfinite(numbers).all():
        where = int(np.flatnonzero(~np.isfinite(numbers))[0])
        raise ValueError(f"{name}[{where}] is {numbers[where]}: scores must be finite")
    return numbers


def _binary(values: ArrayLike, name: str) -> NDArray[np.float64]:
    numbers = _finite(values, name)
    wrong = np.flatnonzero((numbers != 0) & (numbers != 1))
    if len(wrong):
        raise ValueError(
            f"{name}[{wrong[0]}] is {numbers[wrong[0]]}: expected right or wrong (1 or 0); "
            "use mean_interval or ratio_interval for other scores"
        )
    return numbers
