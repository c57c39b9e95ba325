"""The documents in their order, cut into ranges of rows: the units of all work.

A document's number counts splits, then sources, then rows, each in the order of the config. It
does not depend on the workers, nor on how the documents are cut into ranges.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from research.config import schema
from research.data.sources import Source, SourceConfig, open_source
from research.preparation import stages
from research.preparation.stages import Stage
from research.text.normalize import normalise
from research.text.token_table import field_text

# What the first pass leaves of a document: UTF-8 bytes, and a hash of its normalised text.
RECORD = np.dtype([("bytes", "<i8"), ("digest", "<u8", 2)])


class InputError(ValueError):
    """A record that cannot be read; a worker's way to tell it from mistakes of its own."""


@dataclasses.dataclass(frozen=True)
class Part:
    """One split of one source."""

    source: SourceConfig
    split: str
    fingerprint: str
    rows: int
    # Records that could not be read and are left out.
    bad_lines: int = 0

    @property
    def kind(self) -> str:
        return self.source.name


@dataclasses.dataclass(frozen=True)
class Range:
    """Rows `start` .. `stop - 1` of a part; the first is document number `first`."""

    number: int
    part: Part
    start: int
    stop: int
    first: int

    def __len__(self) -> int:
        return self.stop - self.start


def open_part(source: SourceConfig, split: str) -> Part:
    """Opens a split of a source to see what is in it.

    Raises:
        ValueError, FileNotFoundError: as the source says; or it is empty.
    """
    from research.data import checks  # Here: workers need not import JAX.

    opened = open_source(source, split)
    checks.check_not_empty(opened.name, len(opened))
    return Part(source, split, opened.fingerprint, len(opened), opened.bad_lines)


@dataclasses.dataclass(frozen=True)
class Ranges(Sequence[Range]):
    """All parts cut into ranges of at most `rows` rows; small, however many there are."""

    parts: tuple[Part, ...]
    rows: int

    @functools.cached_property
    def _edges(self) -> tuple[np.ndarray, np.ndarray]:
        """[parts + 1] int64 each: the first range of every part, and its first document."""
        rows = np.asarray([part.rows for part in self.parts], np.int64)
        ranges = -(-rows // self.rows)
        return np.cumsum([0, *ranges.tolist()]), np.cumsum([0, *rows.tolist()])

    def __len__(self) -> int:
        return int(self._edges[0][-1])

    def __getitem__(self, number: Any) -> Any:
        if not 0 <= number < len(self):
            raise IndexError(f"range {number} of {len(self)}")
        of_ranges, of_documents = self._edges
        place = int(np.searchsorted(of_ranges, number, side="right")) - 1
        part, start = self.parts[place], (number - int(of_ranges[place])) * self.rows
        stop = min(part.rows, start + self.rows)
        return Range(number, part, start, stop, int(of_documents[place]) + start)

    @property
    def documents(self) -> int:
        """How many there are."""
        return int(self._edges[1][-1])

    @functools.cached_property
    def firsts(self) -> np.ndarray:
        """[ranges] int64: the number of each range's first document."""
        of_ranges, of_documents = self._edges
        counts = np.diff(of_ranges)
        within = np.arange(len(self)) - np.repeat(of_ranges[:-1], counts)
        return np.repeat(of_documents[:-1], counts) + within * self.rows


def opened(part: Part) -> Source:
    """The part's source, opened once in a process; what it holds is as `open_source` says."""
    return _opened(json.dumps(schema.to_dict(part.source)), part.split, part.fingerprint)


@functools.lru_cache(maxsize=64)
def _opened(source: str, split: str, fingerprint: str) -> Source:
    del fingerprint  # Another content is another entry.
    return open_source(schema.build(SourceConfig, json.loads(source)), split)


def examples(
    chosen: Range, left_out: np.ndarray | None = None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(place in the range, record with a `text`) of its documents.

    Args:
      chosen: which documents.
      left_out: [rows of the range] bool, not read.

    Raises:
        InputError: a record cannot be read or has no text; names it.
    """
    source = opened(chosen.part)
    for place in range(len(chosen)):
        if left_out is None or not left_out[place]:
            try:
                example = source[chosen.start + place]
                field_text(example, "text", f"{source.name}, row {chosen.start + place}")
            except ValueError as error:
                raise InputError(str(error)) from error
            yield place, example


def texts(chosen: Range, left_out: np.ndarray | None = None) -> Iterator[tuple[int, str]]:
    """(place in the range, text) of its documents; as `examples`."""
    for place, example in examples(chosen, left_out):
        yield place, example["text"]


def measure(stage: Stage, chosen: Range) -> None:
    """First pass, which every text must survive: size and hash of each document."""
    found = np.zeros(len(chosen), RECORD)
    for place, text in texts(chosen):
        digest = hashlib.blake2b(normalise(text).encode("utf-8", "surrogatepass"), digest_size=16)
        found["bytes"][place] = len(text.encode("utf-8", "surrogatepass"))
        found["digest"][place] = np.frombuffer(digest.digest(), "<u8")
    stages.save(stage.file(chosen.number), found)
