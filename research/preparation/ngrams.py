"""Hashes of words and of word n-grams, as arrays; duplicates and overlaps are compared by them."""

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from research.text.hashing import STEP, splitmix64

# Words whose hashes are cached; about 100 bytes each.
_CACHE_SIZE = 2**18


class _Hashes(dict[str, int]):
    """Word -> 64 bits; forgets when there are too many."""

    def __missing__(self, word: str) -> int:
        if len(self) >= _CACHE_SIZE:
            self.clear()
        digest = hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        value = self[word] = int.from_bytes(digest, "little")
        return value


_hashes = _Hashes()


def word_hashes(words: list[str]) -> np.ndarray:
    """[N] uint64, the same in every process."""
    return np.fromiter(map(_hashes.__getitem__, words), np.uint64, len(words))


def ngram_hashes(hashes: np.ndarray, size: int) -> np.ndarray:
    """[N - size + 1] uint64 of all runs of `size` words; none if there are fewer words.

    Two different n-grams agree with a chance of about 2**-64.
    """
    count = len(hashes) - size + 1
    if count < 1:
        return np.zeros(0, np.uint64)
    return join_hashes(hashes[offset : offset + count] for offset in range(size))


def join_hashes(columns: Iterable[np.ndarray]) -> np.ndarray:
    """[N] uint64 hashes of the rows whose columns [N] these are; the order of columns counts."""
    total: Any = np.uint64(0)
    with np.errstate(over="ignore"):  # Arithmetic modulo 2^64 is meant.
        for column in columns:
            total = total * STEP + column  # odd, so that multiplying by it loses nothing
    return splitmix64(total)
