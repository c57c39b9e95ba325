"""Puts pieces of documents into rows of S tokens. The plan is made ahead, with numpy.

Best-fit decreasing ("Fewer Truncations Improve Language Modeling", Ding et al. 2024): documents
are cut only where they are longer than a row, and what remains is packed without a cut. Where
that leaves gaps and documents may be split, the emptiest rows are cut to fill up.
"""

import bisect
import dataclasses

import numpy as np

from research.objectives.base import Examples

# Rows emptier than this are repacked with cuts, if the objective allows cuts.
_FULL = 0.99


@dataclasses.dataclass(frozen=True)
class Plan:
    """Which piece lies where. Row r holds pieces `offsets[r]` to `offsets[r + 1] - 1`."""

    offsets: np.ndarray  # [rows + 1] int64
    examples: np.ndarray  # [pieces] int64
    starts: np.ndarray  # [pieces] int64: first token of the example in this piece
    lengths: np.ndarray  # [pieces] int64
    sequence_length: int

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def fill(self) -> float:
        """Share of all places that hold a token."""
        return float(self.lengths.sum() / max(1, len(self) * self.sequence_length))


def plan(
    lengths: np.ndarray, sequence_length: int, *, splittable: bool, pack: bool, seed: int
) -> Plan:
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
    lengths = np.asarray(lengths, np.int64)
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
    order = np.random.default_rng(seed).permutation(len(sizes))
    examples, starts, sizes = examples[order], starts[order], sizes[order]
    rows = _best_fit(sizes, sequence_length)
    if splittable:
        used = np.bincount(rows, weights=sizes).astype(np.int64)
        loose = (used < _FULL * sequence_length)[rows]
        # One such row alone cannot be filled further.
        if len(np.unique(rows[loose])) > 1:
            kept = ~loose
            _, rows_kept = np.unique(rows[kept], return_inverse=True)
            more = _chop(examples[loose], starts[loose], sizes[loose], sequence_length)
            examples = np.concatenate([examples[kept], more[0]])
            starts = np.concatenate([starts[kept], more[1]])
            sizes = np.concatenate([sizes[kept], more[2]])
            rows = np.concatenate([rows_kept, more[3] + (rows_kept.max(initial=-1) + 1)])
    return _arrange(rows, examples, starts, sizes, sequence_length)


def _cut(lengths: np.ndarray, limit: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cuts every example into pieces of `limit` and a rest: (example, start, length) of each."""
    counts = -(-lengths // limit)
    examples = np.repeat(np.arange(len(lengths)), counts)
    nth = np.arange(len(examples)) - np.repeat(np.cumsum(counts) - counts, counts)
    starts = nth * limit
    return examples, starts, np.minimum(limit, lengths[examples] - starts)


def _best_fit(sizes: np.ndarray, limit: int) -> np.ndarray:
    """Row of each piece: longest piece first, each into the fullest row that has room for it.

    Exactly best-fit decreasing, but all pieces of one length and all rows with the same room are
    moved together, so that the time goes with the number of lengths and not of pieces.
    """
    order = np.argsort(-sizes, kind="stable")
    row_of = np.empty(len(sizes), np.int64)
    # Room left -> the rows that have it; `rooms` are its keys in order.
    rows_with: dict[int, list[np.ndarray]] = {}
    rooms: list[int] = []
    opened = 0

    def put(room: int, rows: np.ndarray) -> None:
        if room and len(rows):
            if room not in rows_with:
                rows_with[room] = []
                bisect.insort(rooms, room)
            rows_with[room].append(rows)

    values, counts = np.unique(sizes, return_counts=True)
    at = 0
    for size, count in zip(values[::-1].tolist(), counts[::-1].tolist(), strict=True):
        pieces = order[at : at + count]
        at += count
        while len(pieces):
            where = bisect.bisect_left(rooms, size)
            if where < len(rooms):
                room = rooms.pop(where)
                rows = np.concatenate(rows_with.pop(room))
            else:
                room = limit
                needed = -(-len(pieces) // (limit // size))
                rows = np.arange(opened, opened + needed)
                opened += needed
            # The fullest row stays the fullest until it is full, so it takes `each` pieces.
            each = room // size
            taken = min(len(rows), -(-len(pieces) // each))
            now = min(len(pieces), taken * each)
            row_of[pieces[:now]] = np.repeat(rows[:taken], each)[:now]
            last = now - (taken - 1) * each
            put(room - each * size, rows[: taken - 1])
            put(room - last * size, rows[taken - 1 : taken])
            put(room, rows[taken:])
            pieces = pieces[now:]
    return row_of


def _chop(
    examples: np.ndarray, starts: np.ndarray, sizes: np.ndarray, limit: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Lays pieces end to end and cuts at every `limit`: (example, start, length, row) of each."""
    ends = np.cumsum(sizes)
    edges = np.unique(np.concatenate([ends - sizes, np.arange(0, ends[-1], limit)]))
    piece = np.searchsorted(ends, edges, side="right")
    lengths = np.diff(np.append(edges, ends[-1]))
    return (
        examples[piece],
        starts[piece] + edges - (ends - sizes)[piece],
        lengths,
        edges // limit,
    )


def _arrange(
    rows: np.ndarray, examples: np.ndarray, starts: np.ndarray, sizes: np.ndarray, limit: int
) -> Plan:
    order = np.argsort(rows, kind="stable")
    counts = np.bincount(rows) if len(rows) else np.zeros(0, np.int64)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
    return Plan(offsets, examples[order], starts[order], sizes[order], limit)


class PackedRows:
    """Random access to planned rows: `rows[i]` is a dict of `[S]` arrays, fields of `Batch`."""

    def __init__(self, examples: Examples, plan: Plan, pad_id: int):
        self.examples = examples
        self.plan = plan
        self._pad_id = pad_id

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        length = self.plan.sequence_length
        row = empty_row(length, self._pad_id)
        at = 0
        pieces = range(int(self.plan.offsets[index]), int(self.plan.offsets[index + 1]))
        for segment, number in enumerate(pieces, start=1):
            start, size = int(self.plan.starts[number]), int(self.plan.lengths[number])
            piece = self.examples.piece(int(self.plan.examples[number]), start, start + size)
            here = slice(at, at + size)
            row["tokens"][here] = piece.tokens
            row["targets"][here] = piece.targets
            row["weights"][here] = piece.weights
            row["segments"][here] = segment
            row["positions"][here] = np.arange(size)
            if piece.prefix is not None:
                row.setdefault("prefix", np.zeros(length, bool))[here] = piece.prefix
            at += size
        return row


def empty_row(length: int, pad_id: int) -> dict[str, np.ndarray]:
    """A row of padding: nothing in it is trained on."""
    return {
        "tokens": np.full(length, pad_id, np.int32),
        "targets": np.full(length, pad_id, np.int32),
        "weights": np.zeros(length, np.float32),
        "segments": np.zeros(length, np.int32),
        "positions": np.zeros(length, np.int32),
    }
