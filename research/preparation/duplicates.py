"""Documents of the same text: the first stays. Also how numbers are grouped by hash, by any hash.

Hashes and numbers travel as arrays of thousands, keyed by a partition of the hashes, so that a
document costs its 24 bytes and not a Python object.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from research.preparation import running, stages
from research.preparation.documents import Range, Ranges
from research.preparation.stages import Stage

if TYPE_CHECKING:
    from apache_beam import PCollection, Pipeline

# A partition that one worker sorts in memory holds about this many hashes ..
_PER_PARTITION = 2**22
# .. and there are at least so many, for the workers to share.
_FEWEST = 16
_EXACT = np.dtype([("high", "<u8"), ("low", "<u8"), ("number", "<i8")])
# A document, and an earlier one that it is like.
PAIR = np.dtype([("first", "<i8"), ("later", "<i8")])


def partitions(hashes: int) -> int:
    """How many parts the hashes of a corpus are sorted in."""
    return max(_FEWEST, -(-hashes // _PER_PARTITION))


def spread(records: np.ndarray, keys: np.ndarray) -> Iterator[tuple[int, bytes]]:
    """Yields (key, its records as bytes) for every key that occurs."""
    order = np.argsort(keys, kind="stable")
    records, keys = records[order], keys[order]
    edges = np.flatnonzero(np.diff(keys, prepend=-1, append=-1))
    for start, stop in zip(edges, edges[1:], strict=False):
        yield int(keys[start]), records[start:stop].tobytes()


def gather(parts: Iterable[bytes], dtype: np.dtype) -> np.ndarray:
    """The records of all parts, in no order that means something."""
    return np.frombuffer(b"".join(parts), dtype)


def ordered(records: np.ndarray, *names: str) -> np.ndarray:
    """The records sorted by these fields, the first one foremost."""
    return records[np.lexsort([records[name] for name in reversed(names)])]


def range_of(numbers: np.ndarray, firsts: np.ndarray) -> np.ndarray:
    """[N] the ranges in which the documents of these numbers lie."""
    return np.searchsorted(firsts, numbers, side="right") - 1


def exact(
    root: "Pipeline",
    stage: Stage,
    measured: Stage,
    before: Sequence[Stage],
    ranges: Ranges,
) -> None:
    """Builds the stage: -1 for a document that stays, else the number of the one that it repeats.

    Args:
      root: where the pipeline starts.
      stage: gets one file a range, [rows] int64.
      measured: the documents' hashes.
      before: what these remove is not compared.
      ranges: of all documents.
    """
    import apache_beam as beam

    count = partitions(ranges.documents)
    found = (
        running.spread(root, ranges)
        | "Hashes"
        >> beam.FlatMap(
            functools.partial(_hashes, measured, list(before), count)
        ).with_output_types(tuple[int, bytes])
        | "By hash" >> beam.GroupByKey()
        | "Repeats"
        >> beam.FlatMap(functools.partial(_repeats, ranges.firsts)).with_output_types(
            tuple[int, bytes]
        )
    )
    write_by_range(root, found, functools.partial(_mark, stage), ranges)


def write_by_range(
    root: "Pipeline",
    found: "PCollection",
    write: Callable[[Range, Iterable[bytes]], None],
    ranges: Ranges,
) -> None:
    """Calls `write(range, parts)` once for every range, also those of which nothing was found.

    Args:
      root: where the pipeline starts.
      found: collection of (number of a range, bytes).
      write: what to call.
      ranges: of all documents.
    """
    import apache_beam as beam

    every = (
        root
        | "Count ranges" >> beam.Create([len(ranges)])
        | "Every range"
        >> beam.FlatMap(lambda count: ((number, b"") for number in range(count))).with_output_types(
            tuple[int, bytes]
        )
    )
    (
        (found, every)
        | "All" >> beam.Flatten()
        | "By range" >> beam.GroupByKey()
        | "Write" >> beam.MapTuple(functools.partial(_write, ranges, write))
    )


def _write(
    ranges: Ranges,
    write: Callable[[Range, Iterable[bytes]], None],
    number: int,
    parts: Iterable[bytes],
) -> None:
    write(ranges[number], parts)


def _hashes(
    measured: Stage, before: Sequence[Stage], count: int, chosen: Range
) -> Iterator[tuple[int, bytes]]:
    digests = stages.load(measured.file(chosen.number))["digest"]
    kept = np.flatnonzero(~stages.removed(before, chosen.number, len(chosen)))
    records = np.zeros(len(kept), _EXACT)
    records["high"], records["low"] = digests[kept].T
    records["number"] = chosen.first + kept
    yield from spread(records, (records["high"] % np.uint64(count)).astype(np.int64))


def _repeats(firsts: np.ndarray, group: tuple[int, Iterable[bytes]]) -> Iterator[tuple[int, bytes]]:
    records = ordered(gather(group[1], _EXACT), "high", "low", "number")
    same = np.zeros(len(records), bool)
    same[1:] = (records["high"][1:] == records["high"][:-1]) & (
        records["low"][1:] == records["low"][:-1]
    )
    opens = np.flatnonzero(~same)
    pairs = np.zeros(len(records), PAIR)
    pairs["first"] = np.repeat(records["number"][opens], np.diff(opens, append=len(records)))
    pairs["later"] = records["number"]
    pairs = pairs[same]
    yield from spread(pairs, range_of(pairs["later"], firsts))


def _mark(stage: Stage, chosen: Range, parts: Iterable[bytes]) -> None:
    pairs = gather(parts, PAIR)
    marks = np.full(len(chosen), -1, np.int64)
    marks[pairs["later"] - chosen.first] = pairs["first"]
    stages.save(stage.file(chosen.number), marks)
