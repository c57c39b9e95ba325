"""Planned rows as arrays: the pieces of a row are read and written when a batch needs it."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from research.data.packing.planning import PackingPlan
from research.objectives.base import Examples
from research.text.token_table import Ragged

# of fields that a model gives: their shape behind [n, S], and their type
FieldShapes = Mapping[str, tuple[tuple[int, ...], Any]]


class PackedRows:
    """Random access to planned rows: `rows[i]` is a dict of `[S]` arrays, fields of `Batch`."""

    def __init__(self, examples: Examples, plan: PackingPlan, pad_id: int):
        self.examples = examples
        self.plan = plan
        # fields that a model gives (`Loss.model_fields`): of each example [length,...]
        self.model_fields: dict[str, Ragged] = {}
        self._pad_id = pad_id

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        row = empty_rows(1, self.plan.sequence_length, self._pad_id)
        self.write(row, [0], [index])
        return {field: values[0] for field, values in row.items()}

    def write(self, into: dict[str, np.ndarray], places: list[int], rows: list[int]) -> None:
        """Writes rows into the places of a batch; adds the fields `prefix`, `roles` and `values`
        if they have them.

        Args:
          into: fields [n, S] (or [n, S,...] of a model), as `empty_rows` makes them.
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
        bounds = np.concatenate([[0], ends])[np.concatenate([[0], np.cumsum(counts)])]
        if piece.documents is not None:
            fields |= _number_documents(piece.documents, ends - sizes, bounds)
        for field in self.model_fields.keys() & into.keys():
            values = self.model_fields[field]
            pairs = zip(plan.examples[numbers].tolist(), starts, starts + sizes, strict=True)
            fields[field] = np.concatenate([values[i][a:b] for i, a, b in pairs])
        for field, kind in (("prefix", bool), ("roles", np.int32), ("values", np.float32)):
            if (values := getattr(piece, field)) is not None:
                fields[field] = values
                into.setdefault(field, np.zeros(into["tokens"].shape, kind))
        edges = bounds.tolist()
        for field, values in fields.items():
            for place, start, stop in zip(places, edges, edges[1:], strict=False):
                into[field][place, : stop - start] = values[start:stop]


def _number_documents(
    documents: np.ndarray, starts: np.ndarray, bounds: np.ndarray
) -> dict[str, np.ndarray]:
    """Segments and positions of tokens of examples that are several documents each.

    Args:
      documents: [n] the number of each token's document in its example.
      starts: where examples start.
      bounds: where rows do, and the end.
    """
    begins = np.zeros(len(documents), bool)
    begins[starts] = True
    begins[1:] |= documents[1:] != documents[:-1]
    counts = np.cumsum(begins)
    before = np.concatenate([[0], counts])[bounds[:-1]]
    first = np.flatnonzero(begins)
    return {
        "segments": counts - np.repeat(before, np.diff(bounds)),
        "positions": np.arange(len(documents)) - first[counts - 1],
    }


def empty_rows(
    count: int, length: int, pad_id: int, model_fields: FieldShapes | None = None
) -> dict[str, np.ndarray]:
    """[count, length] of padding: nothing in it is trained on."""
    shape = (count, length)
    fields = (model_fields or {}).items()
    return {
        **{name: np.zeros((*shape, *rest), kind) for name, (rest, kind) in fields},
        "tokens": np.full(shape, pad_id, np.int32),
        "targets": np.zeros(shape, np.int32),  # a token, and a class where those are said
        "weights": np.zeros(shape, np.float32),
        "segments": np.zeros(shape, np.int32),
        "positions": np.zeros(shape, np.int32),
    }
