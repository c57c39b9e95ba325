"""Documents in their order, cut into ranges of rows: the units of all work.

A document's number counts splits, then sources, then rows, each in the order of the config. It
does not depend on the workers, nor on how the documents are cut into ranges.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from research.config import schema
from research.data.sources import AnySourceConfig, Source, SourceConfig, open_source
from research.preparation import stages
from research.preparation.stages import Stage
from research.text.normalize import normalize
from research.text.token_table import field_text

# What the first pass leaves of a document: UTF-8 bytes, and a hash of its normalised text.
RECORD = np.dtype([("bytes", "<i8"), ("digest", "<u8", 2)])


class InputError(ValueError):
    """A record that cannot be read; a worker's way to tell it from mistakes of its own."""


@dataclasses.dataclass(frozen=True)
class SourceSplit:
    """One split of one source."""

    source: SourceConfig
    split: str
    fingerprint: str
    rows: int
    # Records that could not be read and are left out.
    bad_lines: int = 0
    # What decides which of its records are refused; see `Source`.
    acceptance: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)

    @property
    def kind(self) -> str:
        return self.source.name


@dataclasses.dataclass(frozen=True)
class RowRange:
    """Rows `start` .. `stop - 1` of a split; the first is document number `first`."""

    number: int
    source_split: SourceSplit
    start: int
    stop: int
    first: int

    def __len__(self) -> int:
        return self.stop - self.start


def open_split(source: SourceConfig, split: str) -> SourceSplit:
    """Opens a split of a source and notes its fingerprint and size.

    Raises:
        ValueError, FileNotFoundError: as the source says; or it is empty.
    """
    from research.data import checks  # Here: workers need not import JAX.

    data = open_source(source, split)
    checks.check_not_empty(data.name, len(data))
    return SourceSplit(source, split, data.fingerprint, len(data), data.bad_lines, data.acceptance)


@dataclasses.dataclass(frozen=True)
class RowRanges(Sequence[RowRange]):
    """All splits cut into ranges of at most `rows` rows; small, however many there are."""

    source_splits: tuple[SourceSplit, ...]
    rows: int

    @functools.cached_property
    def _edges(self) -> tuple[np.ndarray, np.ndarray]:
        """[splits + 1] int64 each: the first range of every split, and its first document."""
        rows = np.asarray([source_split.rows for source_split in self.source_splits], np.int64)
        ranges = -(-rows // self.rows)
        return np.cumsum([0, *ranges.tolist()]), np.cumsum([0, *rows.tolist()])

    def __len__(self) -> int:
        return int(self._edges[0][-1])

    def __getitem__(self, number: Any) -> Any:
        if not 0 <= number < len(self):
            raise IndexError(f"range {number} of {len(self)}")
        first_ranges, first_documents = self._edges
        place = int(np.searchsorted(first_ranges, number, side="right")) - 1
        source_split, start = (
            self.source_splits[place],
            (number - int(first_ranges[place])) * self.rows,
        )
        stop = min(source_split.rows, start + self.rows)
        return RowRange(number, source_split, start, stop, int(first_documents[place]) + start)

    @property
    def documents(self) -> int:
        """Number of documents."""
        return int(self._edges[1][-1])

    @functools.cached_property
    def firsts(self) -> np.ndarray:
        """[ranges] int64: the number of each range's first document."""
        first_ranges, first_documents = self._edges
        counts = np.diff(first_ranges)
        within = np.arange(len(self)) - np.repeat(first_ranges[:-1], counts)
        return np.repeat(first_documents[:-1], counts) + within * self.rows


def open_cached(source_split: SourceSplit) -> Source:
    """The split's source, opened once in a process."""
    return _open_cached(
        json.dumps(schema.to_dict(source_split.source)),
        source_split.split,
        source_split.fingerprint,
    )


@functools.lru_cache(maxsize=64)
def _open_cached(source: str, split: str, fingerprint: str) -> Source:
    del fingerprint  # Another content is another entry.
    return open_source(schema.build(AnySourceConfig, json.loads(source)), split)


def examples(
    row_range: RowRange, left_out: np.ndarray | None = None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(place in the range, record with a `text`) of its documents.

    Args:
      chosen: which documents.
      left_out: [rows of the range] bool, not read.

    Raises:
        InputError: a record cannot be read or has no text; names it.
    """
    source = open_cached(row_range.source_split)
    for place in range(len(row_range)):
        if left_out is None or not left_out[place]:
            try:
                example = source[row_range.start + place]
                field_text(example, "text", f"{source.name}, row {row_range.start + place}")
            except ValueError as error:
                raise InputError(str(error)) from error
            yield place, example


def texts(row_range: RowRange, left_out: np.ndarray | None = None) -> Iterator[tuple[int, str]]:
    """(place in the range, text) of its documents; as `examples`."""
    for place, example in examples(row_range, left_out):
        yield place, example["text"]


def measure_documents(stage: Stage, row_range: RowRange) -> None:
    """First pass, which every text must survive: size and hash of each document."""
    records = np.zeros(len(row_range), RECORD)
    for place, text in texts(row_range):
        digest = hashlib.blake2b(normalize(text).encode("utf-8", "surrogatepass"), digest_size=16)
        records["bytes"][place] = len(text.encode("utf-8", "surrogatepass"))
        records["digest"][place] = np.frombuffer(digest.digest(), "<u8")
    stages.save(stage.file(row_range.number), records)
