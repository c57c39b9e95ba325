"""Best-fit decreasing: longest piece first, each into the fullest row that has room for it."""

import bisect

import numpy as np


def best_fit(sizes: np.ndarray, limit: int, rooms: np.ndarray | None = None) -> np.ndarray:
    """Row of each piece: longest piece first, each into the fullest row that has room for it.

    Exactly best-fit decreasing, but all pieces of one length and all rows with the same room are
    moved together, so that the time goes with the number of lengths and not of pieces.

    Args:
      sizes: [P] tokens of each piece, at most `limit`.
      limit: tokens in a row.
      rooms: [R] tokens for which rows 0 to R - 1 have room already; new rows follow them.
    """
    kind = np.int32 if len(sizes) < 2**31 else np.int64
    # What 16 bits hold is sorted by radix.
    order = np.argsort(
        (limit - sizes).astype(np.uint16 if limit < 2**16 else np.int64), kind="stable"
    )
    order = order.astype(kind)
    row_of = np.empty(len(sizes), kind)
    # Room left -> the rows that have it; `with_room` are its keys in order.
    rows_with: dict[int, list[np.ndarray]] = {}
    with_room: list[int] = []
    row_count = 0

    def add_rows(room: int, rows: np.ndarray) -> None:
        if room and len(rows):
            if room not in rows_with:
                rows_with[room] = []
                bisect.insort(with_room, room)
            rows_with[room].append(rows)

    if rooms is not None:
        row_count = len(rooms)
        for room in np.unique(rooms).tolist():
            add_rows(room, np.flatnonzero(rooms == room))
    values, counts = np.unique(sizes, return_counts=True)
    at = 0
    for size, count in zip(values[::-1].tolist(), counts[::-1].tolist(), strict=True):
        pieces = order[at : at + count]
        at += count
        while len(pieces):
            where = bisect.bisect_left(with_room, size)
            if where < len(with_room):
                room = with_room.pop(where)
                rows = np.concatenate(rows_with.pop(room))
            else:
                room = limit
                new_rows = -(-len(pieces) // (limit // size))
                rows = np.arange(row_count, row_count + new_rows, dtype=kind)
                row_count += new_rows
            # The fullest row stays the fullest until it is full, so it takes `each` pieces.
            each = room // size
            used_rows = min(len(rows), -(-len(pieces) // each))
            now = min(len(pieces), used_rows * each)
            row_of[pieces[:now]] = np.repeat(rows[:used_rows], each)[:now]
            last = now - (used_rows - 1) * each
            add_rows(room - each * size, rows[: used_rows - 1])
            add_rows(room - last * size, rows[used_rows - 1 : used_rows])
            add_rows(room, rows[used_rows:])
            pieces = pieces[now:]
    return row_of
