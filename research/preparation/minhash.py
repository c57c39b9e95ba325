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

from research.preparation import documents, ngrams, running, stages
from research.preparation.config import NearDuplicates
from research.preparation.documents import Range, Ranges
from research.preparation.duplicates import (
    PAIR,
    gather,
    ordered,
    partitions,
    range_of,
    spread,
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


def bands(config: NearDuplicates) -> tuple[int, int]:
    """How many bands a signature is cut into, and the hashes in each."""
    from datasketch import MinHashLSH

    chosen = MinHashLSH(config.threshold, config.permutations, weights=_WEIGHTS)
    return int(chosen.b), int(chosen.r)


def shingle_hashes(text: str, size: int) -> np.ndarray:
    """[N] uint64, distinct: the word n-grams of a text, all of its words if there are fewer."""
    hashes = ngrams.word_hashes(words_of(text))
    return np.unique(ngrams.ngram_hashes(hashes, min(size, max(1, len(hashes)))))


@functools.cache
def _start(permutations: int, seed: int) -> Any:
    from datasketch import MinHash

    # Hashed already: what comes in are the upper 32 bits of an n-gram's hash.
    return MinHash(permutations, seed=seed, hashfunc=int, scheme="affine32")


def signature(shingles: np.ndarray, config: NearDuplicates) -> np.ndarray:
    """[permutations] uint32 of a set of hashes."""
    sketch = _start(config.permutations, config.seed).copy()
    sketch.update_batch((shingles >> np.uint64(32)).tolist())
    return sketch.hashvalues


def near(
    root: "Pipeline",
    stage: Stage,
    config: NearDuplicates,
    before: Sequence[Stage],
    ranges: Ranges,
) -> None:
    """Builds the stage: -1 for a document that stays, else the first number that it is like.

    Args:
      root: where the pipeline starts.
      stage: gets one file a range, [rows] int64, and while it runs `signatures/`.
      config: what is alike.
      before: what these remove is not compared.
      ranges: of all documents.
    """
    import apache_beam as beam

    firsts = ranges.firsts
    shape = bands(config)
    count = partitions(shape[0] * ranges.documents)
    sign = functools.partial(_sign, stage, config, shape, count, list(before))
    records = tuple[int, bytes]
    found = (
        running.spread(root, ranges)
        | "Bands" >> beam.FlatMap(sign).with_output_types(records)
        | "By band" >> beam.GroupByKey()
        | "Pairs" >> beam.FlatMap(functools.partial(_pairs, firsts)).with_output_types(records)
        | "By first" >> beam.GroupByKey()
        | "Attach"
        >> beam.FlatMap(
            functools.partial(_attach, stage, config.permutations, firsts)
        ).with_output_types(records)
    )
    write_by_range(root, found, functools.partial(_judge, stage, config), ranges)


def _signatures(stage: Stage, number: int) -> epath.Path:
    return stage.folder / "signatures" / f"{number:06d}.npy"


def _sign(
    stage: Stage,
    config: NearDuplicates,
    shape: tuple[int, int],
    count: int,
    before: Sequence[Stage],
    chosen: Range,
) -> Iterator[tuple[int, bytes]]:
    """Writes the signatures of a range; yields the hashes of their bands."""
    gone = stages.removed(before, chosen.number, len(chosen))
    signed = np.zeros((len(chosen), config.permutations), np.uint32)
    compared = np.zeros(len(chosen), bool)
    for place, text in documents.texts(chosen, gone):
        shingles = shingle_hashes(text, config.words)
        if len(shingles):  # A document without a word is like no other.
            signed[place] = signature(shingles, config)
            compared[place] = True
    path = _signatures(stage, chosen.number)
    path.parent.mkdir(parents=True, exist_ok=True)
    stages.save(path, signed)
    number, size = shape
    places = np.flatnonzero(compared)
    records = np.zeros((len(places), number), _BAND)
    records["number"] = (chosen.first + places)[:, None]
    for band in range(number):
        columns = signed[places, band * size : (band + 1) * size].astype(np.uint64).T
        # The band's number goes first, so that equal hashes of different bands do not meet.
        numbered = [np.full(len(places), band, np.uint64), *columns]
        records["hash"][:, band] = ngrams.join_hashes(numbered)
    flat = records.ravel()
    yield from spread(flat, (flat["hash"] % np.uint64(count)).astype(np.int64))


def _pairs(firsts: np.ndarray, group: tuple[int, Iterable[bytes]]) -> Iterator[tuple[int, bytes]]:
    """Yields candidates, by the range of the earlier one."""
    records = ordered(gather(group[1], _BAND), "hash", "number")
    hashes, numbers = records["hash"], records["number"]
    opens = np.flatnonzero(np.diff(hashes, prepend=~hashes[:1]))
    first = np.repeat(opens, np.diff(opens, append=len(records)))
    places = np.arange(len(records))
    found = [(first, places, first < places)]
    for distance in range(1, _NEIGHBOURS + 1):
        found.append((places - distance, places, places - distance > first))
    chosen = np.concatenate([np.stack([one, two])[:, real] for one, two, real in found], axis=1)
    pairs = np.zeros(chosen.shape[1], PAIR)
    pairs["first"], pairs["later"] = numbers[chosen[0]], numbers[chosen[1]]
    yield from spread(pairs, range_of(pairs["first"], firsts))


def _compared(permutations: int) -> np.dtype:
    """A pair, and the signature of its earlier document."""
    return np.dtype([*PAIR.descr, ("signature", "<u4", permutations)])


def _attach(
    stage: Stage, permutations: int, firsts: np.ndarray, group: tuple[int, Iterable[bytes]]
) -> Iterator[tuple[int, bytes]]:
    """Yields candidates with the signature of the earlier one, by the range of the later one."""
    number, parts = group
    pairs = ordered(gather(parts, PAIR), "first", "later")
    again = (np.diff(pairs["first"], prepend=-1) == 0) & (np.diff(pairs["later"], prepend=-1) == 0)
    pairs = pairs[~again]  # Several bands may agree.
    signed = stages.load(_signatures(stage, number), mapped=True)
    for start in range(0, len(pairs), _BLOCK):
        block = pairs[start : start + _BLOCK]
        records = np.zeros(len(block), _compared(permutations))
        records["first"], records["later"] = block["first"], block["later"]
        records["signature"] = signed[block["first"] - firsts[number]]
        yield from spread(records, range_of(records["later"], firsts))


def _judge(stage: Stage, config: NearDuplicates, chosen: Range, parts: Iterable[bytes]) -> None:
    """Marks the documents of a range that are like an earlier one."""
    signed = stages.load(_signatures(stage, chosen.number), mapped=True)
    none = np.iinfo(np.int64).max
    marks = np.full(len(chosen), none, np.int64)
    for part in parts:
        records = np.frombuffer(part, _compared(config.permutations))
        for start in range(0, len(records), _BLOCK):
            block = records[start : start + _BLOCK]
            places = block["later"] - chosen.first
            alike = (signed[places] == block["signature"]).mean(axis=1) >= config.threshold
            np.minimum.at(marks, places[alike], block["first"][alike])
    marks[marks == none] = -1
    stages.save(stage.file(chosen.number), marks)
