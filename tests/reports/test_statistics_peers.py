"""Statistics against SciPy and statsmodels, which computed the same before us."""

import numpy as np
import pytest
from scipy import stats

from research.reports.statistics import (
    cluster_mean,
    detectable_difference,
    holm,
    mean_interval,
    paired_difference,
    proportion_interval,
    repeats_needed,
    share_interval,
)
from research.studies.verdicts import mean_differs, mean_within

pytest.importorskip("statsmodels", reason="tools/setup interop")
pytestmark = pytest.mark.heavy

from statsmodels.api import OLS  # noqa: E402
from statsmodels.stats.contingency_tables import mcnemar  # noqa: E402
from statsmodels.stats.multitest import multipletests  # noqa: E402
from statsmodels.stats.power import TTestPower  # noqa: E402
from statsmodels.stats.proportion import proportion_confint  # noqa: E402
from statsmodels.stats.weightstats import DescrStatsW  # noqa: E402

RNG = np.random.default_rng(0)
SAMPLES = [RNG.normal(0.3, 1.0, size=count) for count in (3, 5, 30)]


def same(peer):
    """The peer's numbers, but for rounding."""
    # both compute the same formula, in another order of sums; shares may be zero
    return pytest.approx(peer, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("numbers", SAMPLES, ids=len)
def test_means_intervals_and_t_tests(numbers):
    interval = mean_interval(numbers)
    peer = DescrStatsW(numbers)
    assert (interval.low, interval.high) == same(peer.tconfint_mean())
    assert mean_differs(numbers) == same(peer.ttest_mean(0.0)[1])
    others = RNG.normal(size=len(numbers))
    paired = stats.ttest_rel(numbers, others).pvalue
    assert mean_differs(numbers - others) == same(paired)


@pytest.mark.parametrize("numbers", SAMPLES, ids=len)
def test_equality_within_a_margin_is_two_one_sided_tests(numbers):
    margin = abs(numbers.mean()) + 0.2
    peer = DescrStatsW(numbers).ttost_mean(-margin, margin)[0]
    assert mean_within(numbers, (-margin, margin)) == same(peer)
    # outside: the two-sided test of the limit that it has passed
    limit = numbers.mean() - 0.5
    peer = DescrStatsW(numbers).ttest_mean(limit)[1]
    assert mean_within(numbers, (-np.inf, limit)) == same(peer)


@pytest.mark.parametrize("count", [1, 2, 7, 40])
def test_holms_correction(count):
    p_values = np.round(RNG.uniform(size=count) ** 3, 3)  # with ties
    assert holm(list(p_values)) == same(multipletests(p_values, method="holm")[1])


@pytest.mark.parametrize("numbers", SAMPLES, ids=len)
def test_power(numbers):
    effect = detectable_difference(numbers) / numbers.std(ddof=1)
    power = TTestPower().power(effect, len(numbers), 0.05, alternative="two-sided")
    # statsmodels counts the other tail too, which is smaller than this where the power is 0.8
    assert power == pytest.approx(0.8, abs=1e-4)


@pytest.mark.parametrize("effect", [0.4, 1.0, 2.5])
def test_repeats_needed_are_the_first_that_have_the_power(effect):
    count = repeats_needed(effect)
    powers = [TTestPower().power(effect, n, 0.05) for n in (count - 1, count)]
    assert powers[0] < 0.8 <= powers[1]
    assert repeats_needed(-effect) == count and repeats_needed(1e-3) is None


@pytest.mark.parametrize("right, rows", [(0, 9), (3, 9), (80, 120)])
def test_shares(right, rows):
    interval = proportion_interval((right, rows))
    peer = proportion_confint(right, rows, method="wilson")
    assert (interval.low, interval.high) == same(peer)


def test_paired_answers_are_mcnemars_exact_test():
    a, b = (RNG.uniform(size=200) < share for share in (0.6, 0.5))
    table = [[np.sum(a & b), np.sum(a & ~b)], [np.sum(~a & b), np.sum(~a & ~b)]]
    peer = mcnemar(table, exact=True).pvalue
    assert paired_difference(a, b).p_value == same(peer)


def test_the_error_of_a_mean_over_clusters():
    groups = RNG.integers(0, 12, size=100)
    values = RNG.normal(size=12)[groups] + RNG.normal(size=100)
    fit = OLS(values, np.ones(100)).fit(cov_type="cluster", cov_kwds={"groups": groups})
    mean, error, _ = cluster_mean(values, groups)
    assert (mean, error) == same((fit.params[0], fit.bse[0]))


@pytest.mark.parametrize("numbers", [[0.5, 1.0, 1.0, 0.9], list(RNG.beta(5, 1, size=30))], ids=len)
def test_an_interval_of_shares_is_wilsons_of_the_effective_rows(numbers):
    mean, error = np.mean(numbers), stats.sem(numbers)
    ours = share_interval(numbers)
    # Wilson's with another quantile is that of another number of rows
    ratio = stats.norm.ppf(0.975) / stats.t.ppf(0.975, len(numbers) - 1)
    rows = mean * (1 - mean) / error**2 * ratio**2
    assert (ours.low, ours.high) == same(proportion_confint(mean * rows, rows, method="wilson"))
