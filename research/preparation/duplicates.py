"""Exact duplicates, of which the first stays; and arrays of hashes grouped by key, for all stages.

Hashes and numbers travel as arrays of thousands, keyed by a partition of the hashes, so that a
document costs its 24 bytes and not a Python object.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from research.preparation import runner, stages
from research.preparation.documents import RowRange, RowRanges
from research.preparation.stages import Stage

if TYPE_CHECKING:
    from apache_beam import PCollection, Pipeline

# A partition that one worker sorts in memory holds about this many hashes ..
_PER_PARTITION = 2**22
# .. and there are at least so many, for the workers to share.
_MIN_PARTITIONS = 16
_DIGEST_RECORD = np.dtype([("high", "<u8"), ("low", "<u8"), ("number", "<i8")])
# A document, and an earlier one that it is like.
PAIR = np.dtype([("first", "<i8"), ("later", "<i8")])


def partition_count(hashes: int) -> int:
    """Number of partitions in which the hashes of a corpus are sorted."""
    return max(_MIN_PARTITIONS, -(-hashes // _PER_PARTITION))


def group_by_key(records: np.ndarray, keys: np.ndarray) -> Iterator[tuple[int, bytes]]:
    """Yields (key, its records as bytes) for every key that occurs."""
    order = np.argsort(keys, kind="stable")
    records, keys = records[order], keys[order]
    edges = np.flatnonzero(np.diff(keys, prepend=-1, append=-1))
    for start, stop in zip(edges, edges[1:], strict=False):
        yield int(keys[start]), records[start:stop].tobytes()


def join_parts(parts: Iterable[bytes], dtype: np.dtype) -> np.ndarray:
    """The records of all parts, in no particular order."""
    return np.frombuffer(b"".join(parts), dtype)


def sort_records(records: np.ndarray, *names: str) -> np.ndarray:
    """The records sorted by these fields, the first one foremost."""
    return records[np.lexsort([records[name] for name in reversed(names)])]


def find_ranges(numbers: np.ndarray, firsts: np.ndarray) -> np.ndarray:
    """[N] the ranges in which the documents of these numbers lie."""
    return np.searchsorted(firsts, numbers, side="right") - 1


def mark_exact_duplicates(
    root: "Pipeline",
    stage: Stage,
    documents_stage: Stage,
    removing_stages: Sequence[Stage],
    ranges: RowRanges,
) -> None:
    """Builds the stage: -1 for a document that stays, else the number of the one that it repeats.

    Args:
      root: where the pipeline starts.
      stage: gets one file a range, [rows] int64.
      documents_stage: has the documents' hashes.
      removing_stages: what these remove is not compared.
      ranges: of all documents.
    """
    import apache_beam as beam

    count = partition_count(ranges.documents)
    pairs = (
        runner.distribute(root, ranges)
        | "Hashes"
        >> beam.FlatMap(
            functools.partial(_document_hashes, documents_stage, list(removing_stages), count)
        ).with_output_types(tuple[int, bytes])
        | "By hash" >> beam.GroupByKey()
        | "Repeats"
        >> beam.FlatMap(functools.partial(_repeated_pairs, ranges.firsts)).with_output_types(
            tuple[int, bytes]
        )
    )
    write_by_range(root, pairs, functools.partial(_write_marks, stage), ranges)


def write_by_range(
    root: "Pipeline",
    pairs_by_range: "PCollection",
    write: Callable[[RowRange, Iterable[bytes]], None],
    ranges: RowRanges,
) -> None:
    """Calls `write(range, parts)` once for every range, also without pairs.

    Args:
      root: where the pipeline starts.
      pairs_by_range: collection of (number of a range, bytes).
      write: what to call.
      ranges: of all documents.
    """
    import apache_beam as beam

    empty_parts = (
        root
        | "Count ranges" >> beam.Create([len(ranges)])
        | "Every range"
        >> beam.FlatMap(lambda count: ((number, b"") for number in range(count))).with_output_types(
            tuple[int, bytes]
        )
    )
    (
        (pairs_by_range, empty_parts)
        | "All" >> beam.Flatten()
        | "By range" >> beam.GroupByKey()
        | "Write" >> beam.MapTuple(functools.partial(_call_write, ranges, write))
    )


def _call_write(
    ranges: RowRanges,
    write: Callable[[RowRange, Iterable[bytes]], None],
    number: int,
    parts: Iterable[bytes],
) -> None:
    write(ranges[number], parts)


def _document_hashes(
    documents_stage: Stage, removing_stages: Sequence[Stage], count: int, row_range: RowRange
) -> Iterator[tuple[int, bytes]]:
    digests = stages.load(documents_stage.file(row_range.number))["digest"]
    kept_places = np.flatnonzero(
        ~stages.removed_mask(removing_stages, row_range.number, len(row_range))
    )
    records = np.zeros(len(kept_places), _DIGEST_RECORD)
    records["high"], records["low"] = digests[kept_places].T
    records["number"] = row_range.first + kept_places
    yield from group_by_key(records, (records["high"] % np.uint64(count)).astype(np.int64))


def _repeated_pairs(
    firsts: np.ndarray, group: tuple[int, Iterable[bytes]]
) -> Iterator[tuple[int, bytes]]:
    records = sort_records(join_parts(group[1], _DIGEST_RECORD), "high", "low", "number")
    is_repeat = np.zeros(len(records), bool)
    is_repeat[1:] = (records["high"][1:] == records["high"][:-1]) & (
        records["low"][1:] == records["low"][:-1]
    )
    starts = np.flatnonzero(~is_repeat)
    pairs = np.zeros(len(records), PAIR)
    pairs["first"] = np.repeat(records["number"][starts], np.diff(starts, append=len(records)))
    pairs["later"] = records["number"]
    pairs = pairs[is_repeat]
    yield from group_by_key(pairs, find_ranges(pairs["later"], firsts))


def _write_marks(stage: Stage, row_range: RowRange, parts: Iterable[bytes]) -> None:
    pairs = join_parts(parts, PAIR)
    marks = np.full(len(row_range), -1, np.int64)
    marks[pairs["later"] - row_range.first] = pairs["first"]
    stages.save(stage.file(row_range.number), marks)
