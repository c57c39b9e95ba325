"""Mixtures: shares are kept at every row, caps and schedules hold, and rows are counted alike."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research.data.mixture import NO_LIMIT, Mixture, MixtureConfig, Phase
from research.data.sources import TfdsConfig

WEIGHT = st.floats(1e-3, 1e3)


def _mix(sizes, weights=None, batch_size=4, caps=None, **config) -> Mixture:
    weights, caps = weights or [1.0] * len(sizes), caps or [None] * len(sizes)
    sources = [
        TfdsConfig(f"s{i}", weight=weight, max_epochs=cap)
        for i, (weight, cap) in enumerate(zip(weights, caps, strict=True))
    ]
    return Mixture(MixtureConfig(**config), sources, sizes, batch_size)


@given(
    st.lists(st.tuples(st.integers(1, 50), WEIGHT), min_size=1, max_size=5),
    st.lists(st.tuples(st.integers(1, 60), st.integers(0, 4), WEIGHT), max_size=3),
    st.lists(st.none() | st.floats(0.1, 5), min_size=5, max_size=5),
    st.none() | st.floats(0.3, 10),
    st.integers(1, 7),
)
@settings(max_examples=120, deadline=None)
def test_every_source_gives_its_rows_in_order_and_counts_agree(
    sources, phases, caps, temperature, batch_size
):
    sizes, weights = (list(part) for part in zip(*sources, strict=True))
    caps = caps[: len(sizes)]
    steps = {step: (f"s{source % len(sizes)}", weight) for step, source, weight in phases}
    schedule = tuple(Phase(step, dict([steps[step]])) for step in sorted(steps))
    mixture = _mix(sizes, weights, batch_size, caps, temperature=temperature, schedule=schedule)
    given_before = Counter()
    for row in range(min(300, len(mixture))):
        assert mixture.counts(row) == [given_before[i] for i in range(len(sizes))]
        source, number = mixture[row]
        assert number == given_before[source]
        given_before[source] += 1
        if caps[source] is not None:
            assert given_before[source] <= max(1, int(caps[source] * sizes[source]))


@given(st.lists(WEIGHT, min_size=1, max_size=6), st.integers(0, 10**9))
@settings(max_examples=200, deadline=None)
def test_shares_hold_after_any_number_of_rows(weights, rows):
    counts = _mix([10] * len(weights), weights).counts(rows)
    assert sum(counts) == rows
    for count, weight in zip(counts, weights, strict=True):
        expected = rows * weight / sum(weights)
        # a row a source, and rounding of weights in float64 over so many rows
        assert abs(count - expected) <= len(weights) + 1e-8 * rows


def test_a_temperature_of_1_reads_all_equally_often_and_more_reads_small_ones_more():
    sizes = [1000, 100, 10]
    for temperature, shares in ((1.0, [1000, 100, 10]), (2.0, [1000**0.5, 10, 10**0.5])):
        counts = _mix(sizes, temperature=temperature).counts(100_000)
        for count, share in zip(counts, shares, strict=True):
            # a row a source
            assert count / 100_000 == pytest.approx(share / sum(shares), abs=1e-4)
    weighted = _mix([100, 100], [3.0, 1.0], temperature=1.0).counts(4000)
    assert weighted == [3000, 1000], "weights multiply"


def test_a_used_up_source_leaves_its_share_to_the_others():
    mixture = _mix([10, 100, 100], [2.0, 1.0, 1.0], caps=[1.5, None, None])
    assert mixture.counts(30) == [15, 8, 7] and mixture.counts(31)[0] == 15
    assert mixture.counts(1030) == [15, 508, 507]
    assert mixture.describe(4, 10) == [
        "from step 0: s0 50.0%, s1 25.0%, s2 25.0%",
        "from step 7: s1 50.0%, s2 50.0%",
    ]
    assert len(mixture) == NO_LIMIT


def test_the_mixture_ends_when_all_is_used_up_and_says_so():
    mixture = _mix([10, 20], max_epochs=2.0, caps=[None, 1.0])
    assert len(mixture) == 40 and mixture.counts(40) == [20, 20]
    with pytest.raises(ValueError, match="40 rows to give and not the 41 of this run"):
        mixture.counts(41)
    with pytest.raises(IndexError):
        mixture[40]


def test_a_schedule_changes_shares_at_its_step_and_sources_go_on_where_they_were():
    schedule = (Phase(10, {"s1": 0.0}), Phase(15, {"s0": 0.0, "s1": 1.0}))
    mixture = _mix([100, 100], schedule=schedule)
    assert mixture.counts(40) == [20, 20]
    assert mixture.counts(60) == [40, 20]
    assert mixture.counts(70) == [40, 30] and mixture[60] == (1, 20)


def test_a_source_that_is_used_up_stays_so_in_later_phases():
    mixture = _mix([4, 100], caps=[1.0, None], schedule=(Phase(5, {"s0": 9.0}),))
    assert mixture.counts(400) == [4, 396]


def test_wrong_schedules_are_refused():
    with pytest.raises(ValueError, match="no source 's7'"):
        _mix([1, 1], schedule=(Phase(3, {"s7": 1.0}),))
    with pytest.raises(ValueError, match="step 3: all weights are 0"):
        _mix([1, 1], schedule=(Phase(3, {"s0": 0.0, "s1": 0.0}),))
    with pytest.raises(ValueError, match="steps must increase"):
        MixtureConfig(schedule=(Phase(3, {}), Phase(3, {})))


def test_extreme_temperatures_lose_no_source_and_do_not_overflow():
    for temperature in (1e-3, 1e6):
        counts = _mix([1000, 10], temperature=temperature).counts(2**31)
        assert min(counts) > 0 and sum(counts) == 2**31
