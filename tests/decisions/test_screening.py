"""Screening drops what loses, by intervals on paired rows, and says of each why."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from research.decisions.screening import is_under, screen

PARTS = (10, 20, 40)  # rows so far, part by part


def run(table, rivals=None, budget=None):
    """(outcomes by name, how many rows each was asked)."""
    asked_rows = dict.fromkeys(table, 0)

    def ask(name, part):
        if budget is not None and sum(asked_rows.values()) >= budget:
            return None
        asked_rows[name] = PARTS[part]
        return np.asarray(table[name], float)[: PARTS[part]]

    outcomes = screen([*table], len(PARTS), ask, lambda rows: None, rivals)
    return {outcome.name: outcome for outcome in outcomes}, asked_rows


def test_a_way_that_its_interval_tells_from_the_best_goes_first_and_the_half_after_it():
    rng = np.random.default_rng(0)
    table = {"bad": np.zeros(40), "good": np.ones(40)}
    table |= {f"middle {n}": rng.random(40) < 0.85 for n in range(3)}
    outcomes, asked_rows = run(table)
    assert outcomes["good"].reason == "" and outcomes["good"].rows == 40
    assert outcomes["bad"].rows == 10 and asked_rows["bad"] == 10
    assert "-100 [" in outcomes["bad"].reason and "to good on 10 rows" in outcomes["bad"].reason
    left_behind = [o for o in outcomes.values() if "not told apart" in o.reason]
    assert left_behind and all(outcome.rows < 40 for outcome in left_behind)


def test_ways_lose_to_a_rival_that_is_not_asked_again():
    outcomes, asked_rows = run({"bad": np.zeros(40)}, {"best before": np.ones(40)})
    assert asked_rows["bad"] == 10 and "to best before on 10 rows" in outcomes["bad"].reason


def test_what_a_budget_leaves_unasked_is_said():
    outcomes, _ = run({"a": np.ones(40), "b": np.ones(40)}, budget=10)
    assert outcomes["b"].reason == "the budget was spent" and outcomes["b"].rows == 0
    assert outcomes["a"].reason == "the budget was spent" and outcomes["a"].rows == 10


@given(st.lists(st.integers(0, 99), min_size=1, max_size=8, unique=True))
def test_some_way_is_asked_all_rows_and_none_is_dropped_that_may_be_the_best(seeds):
    table = {
        f"way {seed}": np.random.default_rng(seed).random(40) < (seed % 10) / 10 for seed in seeds
    }
    outcomes, asked_rows = run(table)
    finished = [name for name, outcome in outcomes.items() if not outcome.reason]
    assert finished and all(asked_rows[name] == 40 for name in finished)
    for name, outcome in outcomes.items():
        assert outcome.rows == asked_rows[name]
        if "points to" in outcome.reason:
            rival = outcome.reason.partition(" to ")[2].rpartition(" on ")[0]
            rows = outcome.rows
            assert is_under(
                np.asarray(table[name][:rows], float), np.asarray(table[rival][:rows], float)
            )
