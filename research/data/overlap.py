"""Rows that are in two places: twice in a source, or in a held-out split and in training.

Two rows are equal if what the objective reads of them is, but for case, white space and compatible
forms of characters (NFKC). Rows are compared by hashes of 64 bits, which are made once for a source
and kept beside its tokens; among 10^8 training and 10^5 held-out rows, one in two million runs has
two unequal rows with one hash.

A source is read and hashed once, at 63 MB of JSONL a second on one core: 1 GB of tokens (two bytes
each, about 2 GB of English) takes half a minute the first time. After that 8 bytes a row are read.
"""

import dataclasses
import hashlib
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from research.data.examples import open_texts
from research.data.sources import SourceConfig
from research.data.token_cache import encode
from research.objectives.base import Objective
from research.text.normalize import normalize
from research.text.token_table import Encoded
from research.text.tokenizer import Tokenizer


class RowHashes:
    """An `Encoder`: a hash of what the objective reads of each row, 0 where that is nothing."""

    def __init__(self, objective: Objective):
        self._objective = objective
        self._hashes: list[list[int]] = []
        self.types = {"hash": np.dtype(np.uint64)}
        self.key = {"row_hashes": 1, "of": objective.texts_key}

    def add(self, example: Mapping[str, Any], where: str) -> int:
        """Takes one row."""
        texts = self._objective.texts(example, where)
        normal = [normalize(text) for text in texts]
        digest = hashlib.blake2b(digest_size=8)
        for text in normal:
            digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
        self._hashes.append([int.from_bytes(digest.digest(), "little") if any(normal) else 0])
        return sum(map(len, texts))

    def take(self) -> dict[str, Encoded]:
        """The hashes of what was added."""
        hashes, self._hashes = self._hashes, []
        return {"hash": Encoded(hashes, [0] * len(hashes))}


def hash_rows(
    source: SourceConfig,
    split: str,
    objective: Objective,
    tokenizer: Tokenizer,
    cache: str | os.PathLike[str],
) -> np.ndarray:
    """[N] uint64 of every row of a split; 0 for rows without text."""
    table = encode(open_texts(source, split, tokenizer), RowHashes(objective), cache)
    return np.asarray(table["hash"].values)


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Rows of one place, and for each a row of another that is equal."""

    rows: np.ndarray  # [n] int64, in order
    # Which of the other places, and which row of it.
    places: np.ndarray  # [n] int64
    others: np.ndarray  # [n] int64

    def __len__(self) -> int:
        return len(self.rows)


def find_shared(hashes: np.ndarray, others: Sequence[np.ndarray]) -> Pairs:
    """The rows of `hashes` [N] that are in one of the other places too, with their first equal."""
    unique, group = np.unique(hashes, return_inverse=True)
    place = np.full(len(unique), -1)
    row = np.zeros(len(unique), np.int64)
    for number, other in reversed(list(enumerate(others))):  # The first place and row win.
        at = np.minimum(np.searchsorted(unique, other), max(0, len(unique) - 1))
        equal = np.flatnonzero((unique[at] == other) & (other != 0)) if len(unique) else at[:0]
        place[at[equal]] = number
        row[at[equal][::-1]] = equal[::-1]
    shared = np.flatnonzero(place[group] >= 0)
    return Pairs(shared, place[group][shared], row[group][shared])


def find_repeated(hashes: np.ndarray) -> Pairs:
    """The rows that are equal to an earlier one of the same place, with the first of its kind."""
    _, first, group = np.unique(hashes, return_index=True, return_inverse=True)
    original = first[group]
    again = np.flatnonzero((original != np.arange(len(hashes))) & (hashes != 0))
    return Pairs(again, np.zeros(len(again), np.int64), original[again])
