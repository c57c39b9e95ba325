"""The advice is a pure function of the table: what must hold for any numbers."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.decisions import rules
from research.decisions.costs import BuildCost, Prices, RequestCost, seconds_at, speed_of
from research.decisions.rules import Line, Volume, advise, total_cost
from research.decisions.screening import is_under

ROWS = 24


@pytest.fixture(autouse=True, scope="module")
def few_resamples():
    """They say how sure an advice is, and are no part of it."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(rules, "RESAMPLES", 200)
        yield


PRICES = Prices(hour=2.0, label=0.1, unit="money")


@st.composite
def tables(draw, least=1):
    """Ways with right and wrong answers, and any costs."""
    count = draw(st.integers(least, 5))
    lines = []
    for number in range(count):
        share = draw(st.sampled_from((0.1, 0.4, 0.5, 0.6, 0.9)))
        rng = np.random.default_rng(draw(st.integers(0, 99)))
        build = BuildCost(draw(st.sampled_from((0, 8, 400))), draw(st.sampled_from((0.0, 600.0))))
        seconds = draw(st.sampled_from((0.001, 0.05, 2.0)))
        lines.append(
            Line(f"way {number}", (rng.random(ROWS) < share).astype(float), build, seconds)
        )
    return lines


@given(tables(), st.sampled_from((1.0, 100.0, 10_000.0)))
def test_the_advised_way_is_as_good_as_the_best_and_the_cheapest_of_these(lines, a_day):
    volume = Volume(a_day)
    advice = advise(lines, PRICES, volume)
    by_name = {line.name: line for line in lines}
    best = by_name[advice.best]
    assert all(line.mean <= best.mean for line in lines)
    for line in lines:
        assert (line.name in advice.equals) == (not is_under(line.scores, best.scores))
        if line.name in advice.equals:
            assert advice.totals[advice.way] <= total_cost(line, PRICES, volume)
    assert advice.way in advice.equals
    others = [line for line in lines if line.name != advice.way]
    if others:
        assert by_name[advice.runner_up].mean == max(line.mean for line in others)


@given(tables(), st.randoms(use_true_random=False))
def test_the_order_of_the_table_decides_nothing(lines, random):
    shuffled = list(lines)
    random.shuffle(shuffled)
    assert advise(shuffled, PRICES, Volume()) == advise(lines, PRICES, Volume())


@given(tables(least=2))
def test_a_way_that_is_worse_and_dearer_changes_no_advice(lines):
    advice = advise(lines, PRICES, Volume())
    way = next(line for line in lines if line.name == advice.way)
    worse = Line("worse", way.scores * 0, BuildCost(way.build.labels, 1e9), 100.0)
    assert advise([*lines, worse], PRICES, Volume()).way == advice.way


@given(tables(least=2))
def test_more_requests_never_lead_to_a_way_whose_request_costs_more(lines):
    by_name = {line.name: line.request_seconds for line in lines}
    ways = [advise(lines, PRICES, Volume(a_day)).way for a_day in (1, 100, 1e6)]
    seconds = [by_name[way] for way in ways]
    assert seconds == sorted(seconds, reverse=True)


@given(tables(least=2))
def test_at_a_crossing_both_ways_cost_the_same_and_beyond_it_the_other_is_cheaper(lines):
    volume = Volume(100.0)
    advice = advise(lines, PRICES, volume)
    by_name = {line.name: line for line in lines}
    for each in advice.crossings:
        at = dataclasses.replace(volume, a_day=each.a_day)
        totals = [total_cost(by_name[name], PRICES, at) for name in (advice.way, each.way)]
        assert totals[0] == pytest.approx(totals[1])
        beyond = dataclasses.replace(volume, a_day=each.a_day * (2 if each.is_above else 0.5))
        assert total_cost(by_name[each.way], PRICES, beyond) < total_cost(
            by_name[advice.way], PRICES, beyond
        )


def rows_of(right, count=100):
    return np.arange(count) < right


def line(name, right, seconds=1.0, **build):
    return Line(name, rows_of(right).astype(float), BuildCost(**build), seconds)


def test_a_target_is_met_by_the_cheapest_way_that_has_it_or_said_to_be_met_by_none():
    lines = [line("long", 95, 10.0), line("short", 85, 1.0), line("majority", 30, 0.0)]
    advice = advise(lines, Prices(), Volume(), target=0.8)
    assert (advice.way, advice.runner_up, advice.meets_target) == ("short", "long", True)
    assert advice.reasons[0] == "short is the cheapest way that meets the target of 80%"
    advice = advise(lines, Prices(), Volume(), target=0.99)
    assert advice.meets_target is False and advice.way == "long"
    assert "no way meets the target of 99%: the best of them, long, has 95.0%" in advice.reasons[0]


def test_ways_that_rows_do_not_tell_apart_are_decided_by_cost_and_that_is_said():
    lines = [line("dear", 70, 9.0), line("cheap", 69, 1.0)]
    rng = np.random.default_rng(0)
    lines[1] = dataclasses.replace(lines[1], scores=rng.permutation(lines[1].scores))
    advice = advise(lines, Prices(), Volume())
    assert (advice.way, advice.best, advice.equals) == ("cheap", "dear", ("cheap", "dear"))
    assert "100 rows do not tell cheap from it" in advice.reasons[0]
    assert 0 < advice.sureness < 1 and advice.regret > 0


def test_a_way_that_is_always_right_is_sure_and_regrets_nothing():
    advice = advise([line("a", 100), line("b", 10)], Prices(), Volume())
    assert (advice.way, advice.sureness, advice.regret) == ("a", 1.0, 0.0)


def test_groups_make_the_advice_less_sure():
    """Forty rows of four questions, each ten times, are four questions."""
    a, b = np.repeat([1.0, 1, 0, 1], 10), np.repeat([0.0, 1, 1, 0], 10)
    lines = [Line("a", a, BuildCost(), 1.0), Line("b", b, BuildCost(), 1.0)]
    groups = [str(n // 10) for n in range(40)]
    alone, together = (advise(lines, Prices(), Volume(), groups=each) for each in (None, groups))
    assert together.sureness < alone.sureness and together.equals == ("a", "b")


def test_nothing_that_was_asked_is_no_advice():
    with pytest.raises(ValueError, match="no way was asked all rows"):
        advise([], Prices(), Volume())


def test_a_request_costs_its_flops_at_the_machines_median_speed():
    costs = [RequestCost(flops=10.0, seconds=s) for s in (1.0, 2.0, 10.0)]
    assert speed_of(costs) == 5.0 and speed_of([RequestCost(seconds=3.0)]) is None
    assert seconds_at(costs[2], 5.0) == 2.0
    assert seconds_at(RequestCost(seconds=3.0), 5.0) == 3.0  # what is no model, as measured
    prices = Prices(hour=3600.0, label=2.0)
    assert prices.build(BuildCost(labels=5, seconds=7.0)) == 17.0 and prices.requests(3, 2.0) == 6.0
