"""Packing plans: every token once, nothing overlaps, nothing is split that must not be."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research.data.packing.planning import plan
from research.data.packing.rows import PackedRows
from research.objectives.base import Examples, Piece

ROW = 16


def _examples(lengths, splittable):
    """Example i's tokens are 1000 i, 1000 i + 1, ..."""

    def piece(index, start, stop):
        tokens = np.arange(1000 * index + start, 1000 * index + stop, dtype=np.int32)
        return Piece(tokens, tokens + 1, np.ones(len(tokens), np.float32))

    lengths = np.asarray(lengths, np.int64)
    none = np.zeros(len(lengths), bool)
    return Examples("made", lengths, lengths, lengths, none, splittable, piece)


@given(st.lists(st.integers(0, 60), max_size=60), st.booleans(), st.booleans(), st.integers(0, 9))
@settings(max_examples=150, deadline=None)
def test_every_token_is_in_exactly_one_place(lengths, splittable, pack, seed):
    if not splittable:
        lengths = [min(length, ROW) for length in lengths]
    arrays = plan(np.asarray(lengths), ROW, splittable=splittable, pack=pack, seed=seed)
    rows = PackedRows(_examples(lengths, splittable), arrays, pad_id=-7)
    row_tokens = []
    for i in range(len(rows)):
        row = rows[i]
        real = row["segments"] > 0
        # Filled from the left without a gap, so two pieces never overlap.
        assert real.sum() == arrays.lengths[arrays.offsets[i] : arrays.offsets[i + 1]].sum() <= ROW
        assert real[: real.sum()].all() and np.all(np.diff(row["segments"][real]) >= 0)
        assert np.all(row["tokens"][~real] == -7) and not row["weights"][~real].any()
        for segment in range(1, row["segments"].max() + 1):
            here = row["segments"] == segment
            assert np.array_equal(row["positions"][here], np.arange(here.sum()))
            assert np.all(np.diff(row["tokens"][here]) == 1), "one stretch of one example"
            if not splittable:
                assert here.sum() == lengths[row["tokens"][here][0] // 1000]
        if not pack:
            assert row["segments"].max() == 1
        row_tokens += row["tokens"][real].tolist()
    expected = [1000 * i + k for i, length in enumerate(lengths) for k in range(length)]
    assert sorted(row_tokens) == expected


@given(st.lists(st.integers(1, ROW), min_size=1, max_size=80))
@settings(max_examples=60, deadline=None)
def test_bucketed_packing_equals_best_fit_decreasing_one_by_one(lengths):
    rooms: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [room for room in rooms if room >= length]
        if fitting:
            rooms.remove(min(fitting))
        rooms.append((min(fitting) if fitting else ROW) - length)
    arrays = plan(np.asarray(lengths), ROW, splittable=False, pack=True, seed=0)
    row_lengths = np.add.reduceat(arrays.lengths, arrays.offsets[:-1])
    assert sorted(ROW - row_lengths) == sorted(rooms)


@pytest.mark.parametrize("share", [0.05, 0.55, 0.62, 3.0])
def test_causal_rows_are_at_least_99_percent_full(share):
    generator = np.random.default_rng(0)
    lengths = generator.integers(1, int(2 * share * 512), 3000)
    if share in (0.55, 0.62):  # Two never fit into a row together.
        lengths = np.full(3000, int(share * 512))
    assert plan(lengths, 512, splittable=True, pack=True, seed=0).fill >= 0.99


def test_short_unsplit_examples_fill_97_percent():
    lengths = np.random.default_rng(0).integers(5, 120, 5000)
    assert plan(lengths, 256, splittable=False, pack=True, seed=0).fill >= 0.97


def test_documents_are_cut_only_where_they_are_longer_than_a_row():
    lengths = np.random.default_rng(0).integers(1, 200, 20000)
    arrays = plan(lengths, 100, splittable=True, pack=True, seed=0)
    least = (-(-lengths // 100)).sum()
    assert least <= len(arrays.lengths) <= 1.02 * least


def test_the_plan_is_a_function_of_the_seed():
    lengths = np.random.default_rng(0).integers(1, 40, 500)
    plans = [plan(lengths, 64, splittable=True, pack=True, seed=s) for s in (1, 1, 2)]
    for field in ("offsets", "examples", "starts", "lengths"):
        assert np.array_equal(getattr(plans[0], field), getattr(plans[1], field))
    assert not np.array_equal(plans[0].examples, plans[2].examples)


def test_ten_million_tokens_are_planned_within_two_seconds():
    lengths = np.random.default_rng(0).integers(5, 1500, 14000)
    assert lengths.sum() > 10_000_000
    start = time.process_time()
    plan(lengths, 1024, splittable=True, pack=True, seed=0)
    assert time.process_time() - start < 2


def test_an_example_that_must_not_be_split_and_does_not_fit_is_named():
    with pytest.raises(ValueError, match="Example 1 has 17 tokens"):
        plan(np.asarray([3, 17]), 16, splittable=False, pack=True, seed=0)
