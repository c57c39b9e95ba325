"""Which pieces share a row: by best fit, and by a linear program where that leaves gaps.

Best fit is bad at lengths of a third of a row: it needs up to 7% more rows than there must be.
There, whole patterns of lengths are chosen at once ("A Linear Programming Approach to the
Cutting-Stock Problem", Gilmore and Gomory 1961), and best fit places the rest.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from research.data.packing.best_fit import best_fit

# Best fit's rows are kept if they are so full, or so near to the volume of what they hold.
_FULL = 0.98
_NEAR = 1.005
# Lengths that the linear program tells apart at most; between them it rounds up.
_LEVELS = 256
# Places in a row that it tells apart at most.
_PLACES = 2**14
# It ends where its rows are so near to the bound that it proves.
_GAP = 3e-3
_MOST_TURNS = 100
# Of the patterns that are used in part only, one in so many is taken at once.
_DIVE = 10


def assign(sizes: np.ndarray, limit: int) -> np.ndarray:
    """Row of each piece; the same for the same input.

    Args:
      sizes: [P] tokens of each piece, from 1 to `limit`.
      limit: tokens in a row.

    Returns:
      [P] from 0 without a gap. They are at least 98% full, or no more than `min_rows` and 1% or
      one row (for natural lengths: the linear program promises no more).
    """
    rows = best_fit(sizes, limit)
    if not len(sizes):
        return rows
    row_count, volume = int(rows.max()) + 1, int(sizes.sum())
    if volume >= _FULL * row_count * limit or row_count <= _NEAR * -(-volume // limit):
        return rows
    better = _by_patterns(sizes.astype(np.int64), limit)
    return better if better.max() < rows.max() else rows


def min_rows(sizes: np.ndarray, limit: int) -> int:
    """A number of rows that no plan without cuts can be below, from the dual of the program."""
    sizes = sizes.astype(np.int64)
    volume = -(-int(sizes.sum()) // limit)
    group = _groups(sizes)
    least = np.full(group.max() + 1, limit)
    np.minimum.at(least, group, sizes)
    unit = -(-limit // _PLACES)
    down = (least // unit)[group]  # Shorter pieces only need fewer rows.
    if not (down > 0).any():
        return volume
    return max(volume, _solve(*np.unique(down[down > 0], return_counts=True), limit // unit).bound)


def _groups(sizes: np.ndarray) -> np.ndarray:
    """[P] int64, number of the group that each piece is counted with: of nearly the same length.

    Groups are as wide as they must be for there to be no more than the program tells apart, so
    that lengths which lie close together are told apart one by one.
    """
    lengths = np.unique(sizes)
    width = 1
    while len(np.unique(lengths // width)) > _LEVELS:
        width += 1
    return np.unique(sizes // width, return_inverse=True)[1]


def _by_patterns(sizes: np.ndarray, limit: int) -> np.ndarray:
    """Row of each piece: the program's whole rows, and best fit for what they leave."""
    group = _groups(sizes)
    most = np.zeros(group.max() + 1, np.int64)
    np.maximum.at(most, group, sizes)
    unit = -(-limit // _PLACES)
    capacity = limit // unit
    # The longest are alone in their rows, also where rounding makes them longer than a row.
    up = np.minimum(-(-most // unit), capacity)[group]
    order = np.argsort(up, kind="stable")
    levels, first, counts = np.unique(up[order], return_index=True, return_counts=True)
    row_of = np.full(len(sizes), -1, np.int64)
    row_count, remaining = 0, counts.copy()
    for pattern, amount in _whole_patterns(levels, counts, capacity):
        rows = np.arange(row_count, row_count + amount)
        for level, times in zip(*np.unique(pattern, return_counts=True), strict=True):
            here = min(amount * times, remaining[level])
            pieces = order[first[level] + counts[level] - remaining[level] :][:here]
            row_of[pieces] = np.resize(rows, here)
            remaining[level] -= here
        row_count += amount
    is_placed = row_of >= 0
    totals = np.bincount(row_of[is_placed], weights=sizes[is_placed], minlength=row_count).astype(
        np.int64
    )
    row_of[~is_placed] = best_fit(sizes[~is_placed], limit, limit - totals)
    return np.unique(row_of, return_inverse=True)[1]


def _whole_patterns(
    sizes: np.ndarray, counts: np.ndarray, limit: int
) -> Iterator[tuple[tuple[int, ...], int]]:
    """Patterns with whole numbers of rows, which place nearly all pieces.

    Whole parts of the solution are taken as they are; of what is left, some of the patterns with
    the largest fractions are taken, and the rest is solved anew.
    """
    remaining = counts.copy()
    patterns: list[tuple[int, ...]] = []
    while (remaining > 0).any():
        here = np.flatnonzero(remaining)
        number = {size: k for k, size in enumerate(here.tolist())}
        usable = [p for p in patterns if all(size in number for size in p)]
        usable = [tuple(number[size] for size in p) for p in usable]
        program = _solve(sizes[here], remaining[here], limit, usable)
        patterns = [tuple(int(here[k]) for k in p) for p in program.patterns]
        amounts = np.floor(program.amounts + 1e-9).astype(np.int64)
        if not amounts.any():
            best = np.argsort(-program.amounts, kind="stable")
            amounts[best[: 1 + (program.amounts > 1e-9).sum() // _DIVE]] = 1
        progress = False
        for pattern, amount in zip(patterns, amounts.tolist(), strict=True):
            need = np.bincount(pattern, minlength=len(sizes))
            amount = (
                min(amount, int((remaining[need > 0] // need[need > 0]).min())) if amount else 0
            )
            if amount:
                remaining -= amount * need
                progress = True
                yield pattern, amount
        if not progress:
            return


@dataclasses.dataclass(frozen=True)
class _Program:
    """Patterns, each the numbers of the sizes that fill a row, and how often to use each."""

    patterns: list[tuple[int, ...]]
    amounts: np.ndarray
    # No whole number of rows below it holds all.
    bound: int


def _solve(
    sizes: np.ndarray,
    counts: np.ndarray,
    limit: int,
    more: Sequence[tuple[int, ...]] = (),
) -> _Program:
    """Fewest rows for `counts` pieces of each size, in fractions of rows: column generation.

    Every turn adds, for each size, the most valuable pattern that holds it at the prices of the
    last turn. `more` are patterns to begin with. The bound is Farley's (1990): what all pieces are
    worth at prices at which no row is worth more than 1.
    """
    import scipy.optimize  # here: it takes half a second to import, and few plans need it
    import scipy.sparse

    patterns = [(i,) * int(limit // size) for i, size in enumerate(sizes)]
    patterns += sorted(set(more) - set(patterns))
    known_patterns, bound = set(patterns), 0
    for _ in range(_MOST_TURNS):
        pieces = np.concatenate(patterns)
        column = np.repeat(np.arange(len(patterns)), [len(pattern) for pattern in patterns])
        counts_matrix = scipy.sparse.csr_array(
            (np.ones(len(pieces)), (pieces, column)), shape=(len(sizes), len(patterns))
        )
        solution = scipy.optimize.linprog(
            np.ones(len(patterns)), A_ub=-counts_matrix, b_ub=-counts, method="highs"
        )
        if not solution.success:
            raise RuntimeError(f"The program of packing has no solution: {solution.message}")
        prices = np.maximum(0, -solution.ineqlin.marginals)
        worth, last = _knapsack(sizes, prices, limit)
        bound = max(bound, int(np.ceil(prices @ counts / worth[limit] * (1 - 1e-9))))
        if solution.fun <= (1 + _GAP) * bound:
            break
        new = []
        for i in np.flatnonzero(prices + worth[limit - sizes] > 1 + 1e-9).tolist():
            pattern, room = [i], int(limit - sizes[i])
            while last[room] >= 0:
                pattern.append(int(last[room]))
                room -= int(sizes[last[room]])
            new.append(tuple(sorted(pattern)))
        new = sorted(set(new) - known_patterns)
        if not new:
            break
        known_patterns.update(new)
        patterns += new
    return _Program(patterns[: len(solution.x)], solution.x, bound)


def _knapsack(sizes: np.ndarray, prices: np.ndarray, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """For every room up to `limit`: the most that pieces in it are worth, and one of them or -1."""
    worth = np.zeros(limit + 1)
    last = np.full(limit + 1, -1)
    for room in range(int(sizes[0]), limit + 1):
        fits = int(np.searchsorted(sizes, room, side="right"))
        values = worth[room - sizes[:fits]] + prices[:fits]
        best = int(np.argmax(values))
        worth[room], last[room] = worth[room - 1], last[room - 1]
        if values[best] > worth[room]:
            worth[room], last[room] = values[best], best
    return worth, last
