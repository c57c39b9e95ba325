"""Rows for pieces that must not be cut: as few as there can be, or nearly."""

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research.data.packing import best_fit, cutting_stock

# Lengths as data have them, in rows of 1: short notices, chats, answers of a third of a row, ...
NATURAL = {
    "short": lambda draw, n: draw.lognormal(np.log(1 / 20), 0.6, n),
    "chats": lambda draw, n: draw.lognormal(np.log(1 / 4), 0.8, n),
    "thirds": lambda draw, n: draw.normal(1 / 3, 1 / 30, n),
    "about a third": lambda draw, n: draw.lognormal(np.log(1 / 3), 0.3, n),
    "about a half": lambda draw, n: draw.lognormal(np.log(1 / 2), 0.3, n),
    "a quarter to a half": lambda draw, n: draw.uniform(1 / 4, 1 / 2, n),
    "a sixth, nearly equal": lambda draw, n: draw.integers(338, 346, n) / 2048,
    "a fifth, nearly equal": lambda draw, n: draw.normal(1 / 5, 1 / 250, n),
    "a few lengths": lambda draw, n: draw.choice([0.34, 0.32, 0.5, 0.14], n),
}


def _sizes(kind: str, seed: int, count: int, limit: int) -> np.ndarray:
    samples = NATURAL[kind](np.random.default_rng(seed), count) * limit
    return np.clip(samples, 1, limit).astype(np.int64)


def _rows(sizes: np.ndarray, limit: int, rows: np.ndarray) -> int:
    """Number of rows; every piece is in one, and none holds more than it may."""
    assert len(rows) == len(sizes) and rows.min() == 0
    row_lengths = np.bincount(rows, weights=sizes)
    assert row_lengths.min() > 0 and row_lengths.max() <= limit
    return len(row_lengths)


@functools.cache
def _exactly(sizes: tuple[int, ...], limit: int) -> int:
    """The fewest rows, by trying everything."""
    best = len(sizes)

    def place(at: int, rooms: tuple[int, ...]) -> None:
        nonlocal best
        if len(rooms) >= best:
            return
        if at == len(sizes):
            best = len(rooms)
            return
        for k, room in enumerate(rooms):
            if room >= sizes[at] and room not in rooms[:k]:
                place(at + 1, (*rooms[:k], room - sizes[at], *rooms[k + 1 :]))
        place(at + 1, (*rooms, limit - sizes[at]))

    place(0, ())
    return best


@pytest.mark.parametrize("kind", NATURAL)
@pytest.mark.parametrize(
    ("limit", "count"),
    [(128, 40), (1000, 400), pytest.param(2048, 20_000, marks=pytest.mark.heavy)],
)
def test_rows_are_98_percent_full_or_within_1_percent_of_the_fewest(kind, limit, count):
    sizes = _sizes(kind, 0, count, limit)
    row_count = _rows(sizes, limit, cutting_stock.assign(sizes, limit))
    fewest = cutting_stock.min_rows(sizes, limit)
    assert fewest <= row_count
    assert sizes.sum() >= 0.98 * row_count * limit or row_count <= max(1.01 * fewest, fewest + 1)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=9), st.integers(30, 40))
@settings(max_examples=150, deadline=None)
def test_the_bound_is_below_every_plan_and_plans_are_near_the_best(sizes, limit):
    best = _exactly(tuple(sorted(sizes, reverse=True)), limit)
    pieces = np.asarray(sizes)
    assert cutting_stock.min_rows(pieces, limit) <= best
    assert best <= _rows(pieces, limit, cutting_stock.assign(pieces, limit)) <= best + 1


@given(st.lists(st.integers(1, 1500), min_size=1, max_size=60), st.integers(1500, 2100))
@settings(max_examples=30, deadline=None)
def test_rounded_lengths_still_fit_their_rows(sizes, limit):
    pieces = np.asarray([*sizes, limit])
    rows = cutting_stock._by_patterns(pieces, limit)
    assert _rows(pieces, limit, rows) >= cutting_stock.min_rows(pieces, limit)


def test_patterns_save_5_percent_of_the_rows_where_lengths_are_a_third_of_one():
    sizes = _sizes("thirds", 1, 5000, 512)
    fitted = _rows(sizes, 512, best_fit.best_fit(sizes, 512))
    assert _rows(sizes, 512, cutting_stock.assign(sizes, 512)) < 0.96 * fitted


def test_the_same_pieces_get_the_same_rows():
    sizes = _sizes("about a third", 2, 3000, 128)
    assert np.array_equal(cutting_stock.assign(sizes, 128), cutting_stock.assign(sizes.copy(), 128))


def test_best_fit_fills_rows_that_are_begun():
    rows = best_fit.best_fit(np.asarray([5, 3, 9]), 10, rooms=np.asarray([3, 6, 0]))
    assert rows.tolist() == [1, 0, 3]


def test_no_pieces_need_no_rows():
    assert len(cutting_stock.assign(np.zeros(0, np.int64), 8)) == 0


def test_the_bound_knows_lengths_that_are_one_token_apart():
    sizes = np.repeat([341, 342, 683, 684, 1365, 1366], [3000, 3000, 1500, 1500, 1000, 1000])
    # 1366 leaves room for 682, and so for 341 twice or a 342: no plan is full
    volume = -(-int(sizes.sum()) // 2048)
    rows = _rows(sizes, 2048, cutting_stock.assign(sizes, 2048))
    assert volume < cutting_stock.min_rows(sizes, 2048) <= rows
    assert rows <= 1.001 * cutting_stock.min_rows(sizes, 2048)
