"""Puts pieces of documents into rows of S tokens. The plan is made ahead, with numpy.

"Fewer Truncations Improve Language Modeling" (Ding et al. 2024): documents are cut only where they
are longer than a row, and what remains is packed without a cut. Where that leaves gaps and
documents may be split, the emptiest rows are cut to fill up.

A plan is the index of a whole corpus, so its numbers have 32 bits wherever these hold them.
"""

import dataclasses

import numpy as np

from research.data.packing import cutting_stock
from research.data.packing.best_fit import best_fit

# Rows emptier than this are repacked with cuts, if the objective allows cuts.
_FULL = 0.99
# Pieces that are counted at one time.
_CHUNK = 2**24


@dataclasses.dataclass(frozen=True)
class PackingPlan:
    """Which piece lies where. Row r holds pieces `offsets[r]` to `offsets[r + 1] - 1`."""

    offsets: np.ndarray  # [rows + 1] int64
    examples: np.ndarray  # [pieces] whole numbers, as below
    starts: np.ndarray  # [pieces]: first token of the example in this piece
    lengths: np.ndarray  # [pieces]
    sequence_length: int

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def fill(self) -> float:
        """Share of all places that hold a token."""
        return float(self.lengths.sum() / max(1, len(self) * self.sequence_length))


def plan(
    lengths: np.ndarray, sequence_length: int, *, splittable: bool, pack: bool, seed: int
) -> PackingPlan:
    """Plans rows for examples of these lengths; every token is placed exactly once.

    Args:
      lengths: [N] tokens of each example; empty examples are left out.
      sequence_length: S, tokens in a row.
      splittable: whether an example may be cut into pieces.
      pack: whether a row may hold several pieces.
      seed: decides which pieces of one length share a row with which others.

    Raises:
        ValueError: an example that may not be split is longer than a row (names it).
    """
    lengths = np.asarray(lengths) if len(lengths) else np.zeros(0, np.int64)
    if sequence_length < 1:
        raise ValueError(f"sequence_length must be positive, not {sequence_length}.")
    if not splittable and len(lengths) and lengths.max() > sequence_length:
        row = int(np.argmax(lengths))
        raise ValueError(
            f"Example {row} has {lengths[row]} tokens and may not be split: "
            f"it does not fit a row of {sequence_length}."
        )
    examples, starts, sizes = _cut(lengths, sequence_length)
    if not pack:
        return _arrange(np.arange(len(sizes)), examples, starts, sizes, sequence_length)
    order = np.random.default_rng(seed).permutation(np.arange(len(sizes), dtype=examples.dtype))
    examples, starts, sizes = examples[order], starts[order], sizes[order]
    del order
    if not splittable:
        rows = cutting_stock.assign(sizes, sequence_length)
        return _arrange(rows, examples, starts, sizes, sequence_length)
    rows = best_fit(sizes, sequence_length)
    filled = _totals(rows, sizes)
    loose_rows = filled < _FULL * sequence_length
    if loose_rows.sum() > 1:  # One such row alone cannot be filled further.
        loose = loose_rows[rows]
        keep = ~loose
        renumbered = np.cumsum(~loose_rows, dtype=rows.dtype) - 1
        more = _chop(examples[loose], starts[loose], sizes[loose], sequence_length)
        kept_rows = renumbered[rows[keep]]
        del rows
        examples = np.concatenate([examples[keep], more[0]], dtype=examples.dtype)
        starts = np.concatenate([starts[keep], more[1]], dtype=starts.dtype)
        sizes = np.concatenate([sizes[keep], more[2]], dtype=sizes.dtype)
        rows = np.concatenate([kept_rows, more[3] + (~loose_rows).sum()], dtype=kept_rows.dtype)
    return _arrange(rows, examples, starts, sizes, sequence_length)


def _cut(lengths: np.ndarray, limit: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cuts every example into pieces of `limit` and a rest: (example, start, length) of each."""
    counts = -(-lengths // limit)
    total = int(counts.sum())
    small = total < 2**31 and int(lengths.max(initial=0)) < 2**31
    kind = np.dtype(np.int32 if small else np.int64)
    examples = np.repeat(np.arange(len(lengths), dtype=kind), counts)
    first = (np.cumsum(counts) - counts).astype(kind)
    starts = np.arange(total, dtype=kind)
    starts -= np.repeat(first, counts)
    del counts, first
    starts *= limit
    sizes = lengths[examples].astype(kind, copy=False)
    sizes -= starts
    np.minimum(sizes, limit, out=sizes)
    return examples, starts, sizes.astype(np.uint16) if limit < 2**16 else sizes


def _chop(
    examples: np.ndarray, starts: np.ndarray, sizes: np.ndarray, limit: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Lays pieces end to end and cuts at every `limit`: (example, start, length, row) of each."""
    kind, sizes = sizes.dtype, sizes.astype(np.int64)
    ends = np.cumsum(sizes)
    edges = np.unique(np.concatenate([ends - sizes, np.arange(0, ends[-1], limit)]))
    piece = np.searchsorted(ends, edges, side="right")
    lengths = np.diff(np.append(edges, ends[-1]))
    return (
        examples[piece],
        starts[piece] + edges - (ends - sizes)[piece],
        lengths.astype(kind),
        edges // limit,
    )


def _totals(rows: np.ndarray, sizes: np.ndarray | None) -> np.ndarray:
    """[rows] int64: what lies in each row, its number (None) or its tokens."""
    totals = np.zeros(int(rows.max(initial=-1)) + 1, np.int64)
    for at in range(0, len(rows), _CHUNK):  # bincount makes copies of 8 bytes
        here = slice(at, at + _CHUNK)
        weights = None if sizes is None else sizes[here]
        totals += np.bincount(rows[here], weights, len(totals)).astype(np.int64)
    return totals


def _arrange(
    rows: np.ndarray, examples: np.ndarray, starts: np.ndarray, sizes: np.ndarray, limit: int
) -> PackingPlan:
    order = np.argsort(rows, kind="stable").astype(examples.dtype)
    counts = _totals(rows, None)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
    return PackingPlan(offsets, examples[order], starts[order], sizes[order], limit)
