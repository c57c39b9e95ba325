"""Near duplicates by MinHash and banded locality-sensitive hashing, with datasketch.

Every document gets a signature; documents of which one band of it agrees are candidates; of each
pair of candidates the signatures are compared, and where they say that the similarity reaches the
threshold, the later document goes.

It goes whether or not the earlier one stays, so that every pair is judged by itself: the result
does not depend on an order of work, needs no rounds over the corpus, and no two documents that
stay are a pair that was found to be alike. Connected components would chain: of a row of documents
in which only neighbours are alike, they keep one, even if its ends share nothing.
"""

import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from etils import epath

from research.preparation import documents, ngrams, runner, stages
from research.preparation.config import NearDuplicates
from research.preparation.documents import RowRange, RowRanges
from research.preparation.duplicates import (
    PAIR,
    find_ranges,
    group_by_key,
    join_parts,
    partition_count,
    sort_records,
    write_by_range,
)
from research.preparation.stages import Stage
from research.text.normalize import words_of

if TYPE_CHECKING:
    from apache_beam import Pipeline

# A candidate is compared with the first document of its bucket and with so many before it: all
# pairs of a large bucket would be too many.
_NEIGHBOURS = 4
# What a missed pair costs against one that is compared in vain: candidates are cheap to check.
_WEIGHTS = (0.05, 0.95)
_BAND = np.dtype([("hash", "<u8"), ("number", "<i8")])
# Signatures that are compared at once.
_BLOCK = 2**14


def band_shape(config: NearDuplicates) -> tuple[int, int]:
    """Number of bands of a signature, and of hashes in each."""
    from datasketch import MinHashLSH

    lsh = MinHashLSH(config.threshold, config.permutations, weights=_WEIGHTS)
    return int(lsh.b), int(lsh.r)


def shingle_hashes(text: str, size: int) -> np.ndarray:
    """[N] uint64, distinct: the word n-grams of a text, all of its words if there are fewer."""
    hashes = ngrams.word_hashes(words_of(text))
    return np.unique(ngrams.ngram_hashes(hashes, min(size, max(1, len(hashes)))))


@functools.cache
def _empty_sketch(permutations: int, seed: int) -> Any:
    from datasketch import MinHash

    # Hashed already: what comes in are the upper 32 bits of an n-gram's hash.
    return MinHash(permutations, seed=seed, hashfunc=int, scheme="affine32")


def signature(shingles: np.ndarray, config: NearDuplicates) -> np.ndarray:
    """[permutations] uint32 of a set of hashes."""
    sketch = _empty_sketch(config.permutations, config.seed).copy()
    sketch.update_batch((shingles >> np.uint64(32)).tolist())
    return sketch.hashvalues


def mark_near_duplicates(
    root: "Pipeline",
    stage: Stage,
    config: NearDuplicates,
    removing_stages: Sequence[Stage],
    ranges: RowRanges,
) -> None:
    """Builds the stage: -1 for a document that stays, else the first number that it is like.

    Args:
      root: where the pipeline starts.
      stage: gets one file a range, [rows] int64, and while it runs `signatures/`.
      config: what is alike.
      removing_stages: what these remove is not compared.
      ranges: of all documents.
    """
    import apache_beam as beam

    firsts = ranges.firsts
    shape = band_shape(config)
    count = partition_count(shape[0] * ranges.documents)
    earlier = list(removing_stages)
    write_signatures = functools.partial(_write_signatures, stage, config, shape, count, earlier)
    records = tuple[int, bytes]
    candidates = (
        runner.distribute(root, ranges)
        | "Bands" >> beam.FlatMap(write_signatures).with_output_types(records)
        | "By band" >> beam.GroupByKey()
        | "Pairs"
        >> beam.FlatMap(functools.partial(_candidate_pairs, firsts)).with_output_types(records)
        | "By first" >> beam.GroupByKey()
        | "Attach"
        >> beam.FlatMap(
            functools.partial(_attach_signatures, stage, config.permutations, firsts)
        ).with_output_types(records)
    )
    write_by_range(root, candidates, functools.partial(_write_marks, stage, config), ranges)


def _signatures_path(stage: Stage, number: int) -> epath.Path:
    return stage.folder / "signatures" / f"{number:06d}.npy"


def _write_signatures(
    stage: Stage,
    config: NearDuplicates,
    shape: tuple[int, int],
    count: int,
    removing_stages: Sequence[Stage],
    row_range: RowRange,
) -> Iterator[tuple[int, bytes]]:
    """Writes the signatures of a range; yields the hashes of their bands."""
    is_removed = stages.removed_mask(removing_stages, row_range.number, len(row_range))
    signatures = np.zeros((len(row_range), config.permutations), np.uint32)
    has_words = np.zeros(len(row_range), bool)
    for place, text in documents.texts(row_range, is_removed):
        shingles = shingle_hashes(text, config.words)
        if len(shingles):  # A document without a word is like no other.
            signatures[place] = signature(shingles, config)
            has_words[place] = True
    path = _signatures_path(stage, row_range.number)
    path.parent.mkdir(parents=True, exist_ok=True)
    stages.save(path, signatures)
    number, size = shape
    places = np.flatnonzero(has_words)
    records = np.zeros((len(places), number), _BAND)
    records["number"] = (row_range.first + places)[:, None]
    for band in range(number):
        columns = signatures[places, band * size : (band + 1) * size].astype(np.uint64).T
        # The band's number goes first, so that equal hashes of different bands do not meet.
        band_columns = [np.full(len(places), band, np.uint64), *columns]
        records["hash"][:, band] = ngrams.join_hashes(band_columns)
    flat = records.ravel()
    yield from group_by_key(flat, (flat["hash"] % np.uint64(count)).astype(np.int64))


def _candidate_pairs(
    firsts: np.ndarray, group: tuple[int, Iterable[bytes]]
) -> Iterator[tuple[int, bytes]]:
    """Yields candidate pairs, by the range of the earlier document."""
    records = sort_records(join_parts(group[1], _BAND), "hash", "number")
    hashes, numbers = records["hash"], records["number"]
    starts = np.flatnonzero(np.diff(hashes, prepend=~hashes[:1]))
    first = np.repeat(starts, np.diff(starts, append=len(records)))
    places = np.arange(len(records))
    candidates = [(first, places, first < places)]
    for distance in range(1, _NEIGHBOURS + 1):
        candidates.append((places - distance, places, places - distance > first))
    first_places, later_places = np.concatenate(
        [np.stack([one, two])[:, valid] for one, two, valid in candidates], axis=1
    )
    pairs = np.zeros(len(first_places), PAIR)
    pairs["first"], pairs["later"] = numbers[first_places], numbers[later_places]
    yield from group_by_key(pairs, find_ranges(pairs["first"], firsts))


def _signed_pair_dtype(permutations: int) -> np.dtype:
    """A pair, and the signature of its earlier document."""
    return np.dtype([*PAIR.descr, ("signature", "<u4", permutations)])


def _attach_signatures(
    stage: Stage, permutations: int, firsts: np.ndarray, group: tuple[int, Iterable[bytes]]
) -> Iterator[tuple[int, bytes]]:
    """Yields candidate pairs with the earlier signature, by the range of the later document."""
    number, parts = group
    pairs = sort_records(join_parts(parts, PAIR), "first", "later")
    same_first = np.diff(pairs["first"], prepend=-1) == 0
    is_repeat = same_first & (np.diff(pairs["later"], prepend=-1) == 0)
    pairs = pairs[~is_repeat]  # Several bands may agree.
    signatures = stages.load(_signatures_path(stage, number), memory_map=True)
    for start in range(0, len(pairs), _BLOCK):
        block = pairs[start : start + _BLOCK]
        records = np.zeros(len(block), _signed_pair_dtype(permutations))
        records["first"], records["later"] = block["first"], block["later"]
        records["signature"] = signatures[block["first"] - firsts[number]]
        yield from group_by_key(records, find_ranges(records["later"], firsts))


def _write_marks(
    stage: Stage, config: NearDuplicates, row_range: RowRange, parts: Iterable[bytes]
) -> None:
    """Marks the documents of a range that are like an earlier one."""
    signatures = stages.load(_signatures_path(stage, row_range.number), memory_map=True)
    no_mark = np.iinfo(np.int64).max
    marks = np.full(len(row_range), no_mark, np.int64)
    for part in parts:
        records = np.frombuffer(part, _signed_pair_dtype(config.permutations))
        for start in range(0, len(records), _BLOCK):
            block = records[start : start + _BLOCK]
            places = block["later"] - row_range.first
            is_similar = (signatures[places] == block["signature"]).mean(axis=1) >= config.threshold
            np.minimum.at(marks, places[is_similar], block["first"][is_similar])
    marks[marks == no_mark] = -1
    stages.save(stage.file(row_range.number), marks)
