import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research.reports.statistics import (
    Estimate,
    mean_interval,
    paired_difference,
    proportion_interval,
    ratio_interval,
    score_interval,
    share_interval,
)

# Bentur et al. 2009, airway hyper-responsiveness before and after transplantation: the worked
# example of Fagerland, Lydersen and Laake 2014 (1 both, 1 only before, 7 only after, 12 neither).
BEFORE = np.repeat([1, 1, 0, 0], [1, 1, 7, 12])
AFTER = np.repeat([1, 0, 1, 0], [1, 1, 7, 12])

flags = st.lists(st.booleans(), min_size=2, max_size=40)
pairs = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=40)


def test_wilson_interval_matches_published_values():
    # Newcombe 1998, Statistics in Medicine 17:857, table I: 81/263, 15/148, 0/20, 1/29.
    published_intervals = {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0.0, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }
    for counts, expected in published_intervals.items():
        estimate = proportion_interval(counts)
        # published with four decimals
        np.testing.assert_allclose((estimate.low, estimate.high), expected, atol=6e-5)


def test_paired_difference_matches_published_values():
    result = paired_difference(BEFORE, AFTER)
    assert result.difference.value == pytest.approx(-6 / 21)
    # published with three decimals
    np.testing.assert_allclose(
        (result.difference.low, result.difference.high), (-0.507, -0.026), atol=5e-4
    )
    assert result.p_value == pytest.approx(0.0703125)  # 2 * (1 + 8) / 2**8
    assert (result.only_a, result.only_b) == (1, 7)


def test_t_interval_matches_closed_form():
    estimate = mean_interval([1.0, 2.0, 3.0, 4.0, 5.0])
    reach = 2.7764451 * np.sqrt(2.5 / 5)
    # the quantile in a table has eight digits
    np.testing.assert_allclose((estimate.low, estimate.high), (3 - reach, 3 + reach), rtol=1e-7)


def test_an_interval_of_shares_is_wilsons_of_as_many_rows_as_have_its_error():
    rng = np.random.default_rng(0)
    flags = rng.random(40) < 0.8
    ours, wilson = share_interval(flags), proportion_interval(flags)
    # 0 and 1 vary as themselves; Student's quantile of 39 degrees makes it a little wider
    assert ours.value == wilson.value
    assert wilson.high - wilson.low < ours.high - ours.low < 1.05 * (wilson.high - wilson.low)
    for values in ([1.0, 1.0, 0.8], [0.0, 0.2, 0.0], [0.5, 0.5], [0.25, 0.75] * 30):
        each = share_interval(values)
        assert 0 <= each.low < each.value < each.high <= 1
    assert mean_interval([1.0, 1.0, 0.8]).high > 1
    # far from the bounds and with many rows it is Student's
    values = rng.uniform(0.3, 0.7, 400)
    student, ours = mean_interval(values), share_interval(values)
    # a tenth of the interval's reach of 0.011
    assert ours.low == pytest.approx(student.low, abs=1e-3)
    # and so at the other end
    assert ours.high == pytest.approx(student.high, abs=1e-3)
    # clusters: rows that are there twice say nothing more
    twice = share_interval(np.repeat(values[:30], 2), groups=np.repeat(np.arange(30), 2))
    once = share_interval(values[:30])
    assert (twice.low, twice.high) == pytest.approx((once.low, once.high))


@pytest.mark.parametrize(
    ("values", "interval"),
    [
        ([0, 1, 1], proportion_interval),
        ([0.5, 1, 1], share_interval),
        ([0.5, 1, 1.5], mean_interval),
        ([-0.5, 1, 1], mean_interval),
    ],
)
def test_scores_have_the_interval_of_their_kind(values, interval):
    assert score_interval(values) == interval(values)


def test_an_interval_of_shares_covers_at_its_nominal_rate():
    """Means of three samples each, of 12 questions that are mostly right."""
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(400):
        means = rng.binomial(3, 0.9, size=12) / 3
        each = share_interval(means)
        covered += each.low <= 0.9 <= each.high
    # 95% of 400, less twice its error of 1.1%
    assert covered >= 0.928 * 400


def test_wilson_and_paired_intervals_cover_at_their_nominal_rate():
    rng = np.random.default_rng(1)
    runs, rows, chance = 600, 60, 0.8
    single_hits = paired_hits = 0
    for _ in range(runs):
        shared = rng.random(rows)  # the same hard rows are hard for both models
        a = shared + 0.3 * rng.random(rows) < 0.8
        b = shared + 0.3 * rng.random(rows) < 0.7
        estimate = proportion_interval(rng.random(rows) < chance)
        single_hits += estimate.low <= chance <= estimate.high
        difference = paired_difference(a, b).difference
        paired_hits += difference.low <= 0.1 <= difference.high
    assert 0.92 <= single_hits / runs <= 0.985
    assert 0.92 <= paired_hits / runs <= 0.995


def test_cluster_interval_covers_where_the_plain_one_is_too_narrow():
    rng = np.random.default_rng(2)
    runs, clusters, size, chance = 80, 40, 8, 0.6
    groups = np.repeat(np.arange(clusters), size)
    plain_hits = grouped_hits = 0
    for _ in range(runs):
        correct = np.repeat(rng.random(clusters) < chance, size)  # twins are right together
        interval = proportion_interval(correct)
        plain_hits += interval.low <= chance <= interval.high
        interval = proportion_interval(correct, groups=groups)
        grouped_hits += interval.low <= chance <= interval.high
    assert plain_hits / runs < 0.7
    assert grouped_hits / runs > 0.88


@settings(deadline=None, max_examples=30)
@given(flags, st.integers(1, 5))
def test_interval_contains_its_point_and_stays_in_range(correct, clusters):
    groups = np.arange(len(correct)) % clusters
    estimates = [proportion_interval(correct)]
    if 1 < clusters <= len(correct):
        estimates.append(proportion_interval(correct, groups=groups))
    for estimate in estimates:
        assert estimate.value == pytest.approx(np.mean(correct))
        assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
        assert estimate.n == len(correct)


@settings(deadline=None, max_examples=25)
@given(pairs, st.booleans())
def test_paired_difference_is_antisymmetric(rows, has_clusters):
    a, b = np.asarray(rows).T
    groups = np.arange(len(a)) // 2 if has_clusters and len(a) > 3 else None
    forward = paired_difference(a, b, groups=groups)
    backward = paired_difference(b, a, groups=groups)
    np.testing.assert_allclose(
        [forward.difference.value, forward.difference.low, forward.difference.high],
        [-backward.difference.value, -backward.difference.high, -backward.difference.low],
        atol=1e-9,  # some hundred steps in float64, and a search that ends at 1e-12
    )
    assert forward.p_value == pytest.approx(backward.p_value)
    assert forward.difference.low <= forward.difference.value <= forward.difference.high


@pytest.mark.parametrize("groups", [None, np.arange(50) // 2])
def test_identical_predictions_differ_by_zero_with_p_one(groups):
    correct = np.arange(50) % 3 == 0
    result = paired_difference(correct, correct, groups=groups)
    assert result.difference.value == 0 and result.p_value == 1
    assert result.difference.low < 0 < result.difference.high


def test_clusters_of_one_give_the_exact_mcnemar_p():
    alone = paired_difference(BEFORE, AFTER, groups=np.arange(21))
    assert alone.p_value == pytest.approx(paired_difference(BEFORE, AFTER).p_value)


def test_duplicated_rows_in_one_cluster_add_no_evidence():
    a, b = np.arange(60) % 10 < 7, np.arange(60) % 10 < 5
    once = paired_difference(a, b, groups=np.arange(60))
    twice = paired_difference(np.repeat(a, 2), np.repeat(b, 2), groups=np.repeat(np.arange(60), 2))
    assert twice.difference.low == pytest.approx(once.difference.low)
    assert twice.difference.high == pytest.approx(once.difference.high)
    assert twice.p_value == pytest.approx(once.p_value)


def test_all_correct_clusters_keep_an_interval_of_their_number():
    estimate = proportion_interval(np.ones(40), groups=np.arange(40) // 4)
    assert estimate.value == estimate.high == 1
    assert estimate.low == pytest.approx(proportion_interval((10, 10)).low)


def test_ratio_interval_weights_rows_by_their_denominator():
    estimate = ratio_interval([1.0, 30.0, 12.0], [1.0, 20.0, 10.0])
    assert estimate.value == pytest.approx(43 / 31)
    assert estimate.low < estimate.value < estimate.high
    constant = ratio_interval([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    assert (constant.low, constant.value, constant.high) == (2, 2, 2)
    assert ratio_interval([1.0, 30.0, 12.0], [1.0, 20.0, 10.0]) == estimate  # seeded


def test_bad_scores_are_refused_with_the_place():
    with pytest.raises(ValueError, match=r"correct\[1\] is 0.5"):
        proportion_interval([1, 0.5])
    with pytest.raises(ValueError, match=r"values\[2\] is nan"):
        mean_interval([1.0, 2.0, float("nan")])
    with pytest.raises(ValueError, match="same rows: 2 in a, 3 in b"):
        paired_difference([1, 0], [1, 0, 1])
    with pytest.raises(ValueError, match="groups has shape"):
        proportion_interval([1, 0, 1], groups=[1, 2])
    with pytest.raises(ValueError, match="at least two"):
        mean_interval([1.0])
    with pytest.raises(ValueError, match="rows > 0"):
        proportion_interval((0, 0))


def test_estimate_prints_value_and_interval():
    estimate = Estimate(0.713, 0.6618, 0.7588, 300)
    assert f"{estimate:.1%}" == "71.3 [66.2, 75.9]"
    assert str(estimate) == "0.713 [0.662, 0.759]"
    assert f"{estimate.scaled(-1):+.2f}" == "-0.71 [-0.76, -0.66]"
