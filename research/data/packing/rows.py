"""Planned rows as arrays: the pieces of a row are read and written when a batch needs it."""

import numpy as np

from research.data.packing.planning import PackingPlan
from research.objectives.base import Examples


class PackedRows:
    """Random access to planned rows: `rows[i]` is a dict of `[S]` arrays, fields of `Batch`."""

    def __init__(self, examples: Examples, plan: PackingPlan, pad_id: int):
        self.examples = examples
        self.plan = plan
        self._pad_id = pad_id

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        row = empty_rows(1, self.plan.sequence_length, self._pad_id)
        self.write(row, [0], [index])
        return {field: values[0] for field, values in row.items()}

    def write(self, into: dict[str, np.ndarray], places: list[int], rows: list[int]) -> None:
        """Writes rows into the places of a batch; adds the field `prefix` if they have one.

        Args:
          into: fields [n, S], as `empty_rows` makes them.
          places: below n.
          rows: the row for each of them.
        """
        plan = self.plan
        first, last = plan.offsets[rows], plan.offsets[np.add(rows, 1)]
        counts = last - first
        numbers = np.repeat(first - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())
        sizes = plan.lengths[numbers].astype(np.int64)
        starts = plan.starts[numbers].astype(np.int64)
        piece = self.examples.pieces(plan.examples[numbers], starts, starts + sizes)
        ends = np.cumsum(sizes)
        fields = {
            "tokens": piece.tokens,
            "targets": piece.targets,
            "weights": piece.weights,
            "segments": np.repeat(numbers - np.repeat(first, counts) + 1, sizes),
            "positions": np.arange(sizes.sum()) - np.repeat(ends - sizes, sizes),
        }
        if piece.prefix is not None:
            into.setdefault("prefix", np.zeros(into["tokens"].shape, bool))
            fields["prefix"] = piece.prefix
        edges = np.concatenate([[0], ends])[np.concatenate([[0], np.cumsum(counts)])].tolist()
        for field, values in fields.items():
            for place, start, stop in zip(places, edges, edges[1:], strict=False):
                into[field][place, : stop - start] = values[start:stop]


def empty_rows(count: int, length: int, pad_id: int) -> dict[str, np.ndarray]:
    """[count, length] of padding: nothing in it is trained on."""
    shape = (count, length)
    return {
        "tokens": np.full(shape, pad_id, np.int32),
        "targets": np.full(shape, pad_id, np.int32),
        "weights": np.zeros(shape, np.float32),
        "segments": np.zeros(shape, np.int32),
        "positions": np.zeros(shape, np.int32),
    }
