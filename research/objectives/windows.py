"""Documents cut into windows, for objectives whose examples must each fit a row.

Also their chance: numbers that depend on a seed, an example and nothing else.
"""

import dataclasses

import numpy as np

from research.objectives.base import Piece
from research.text.hashing import STEP, splitmix64
from research.text.token_table import Ragged

# Tokens that are looked up at one time.
_CHUNK = 2**22


@dataclasses.dataclass(frozen=True)
class Windows:
    """Stretches of documents that end with end-of-text; in order they are every token once."""

    documents: Ragged
    rows: np.ndarray  # [N] int64: the document of each window
    starts: np.ndarray  # [N] int64: its first token in `documents.values`
    lengths: np.ndarray  # [N] int64: its tokens; end-of-text is the last of a document's last one

    @classmethod
    def cut(cls, documents: Ragged, limit: int) -> "Windows":
        """Cuts documents longer than `limit` tokens: windows of `limit` and a rest."""
        counts = -(-documents.lengths // limit)
        rows = np.repeat(np.arange(len(documents)), counts)
        nth = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        starts = documents.offsets[rows] + nth * limit
        return cls(documents, rows, starts, np.minimum(limit, documents.offsets[rows + 1] - starts))

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def text_lengths(self) -> np.ndarray:
        """[N] int64 tokens without end-of-text."""
        return self.lengths - (self.starts + self.lengths == self.documents.offsets[self.rows + 1])

    def text(self, index: int) -> np.ndarray:
        """[n] int32 tokens without end-of-text."""
        start, stop = self.starts[index], self.starts[index] + self.lengths[index]
        stop -= stop == self.documents.offsets[self.rows[index] + 1]
        return self.documents.values[start:stop].astype(np.int32)

    def next_tokens(self, index: int, begin: int) -> Piece:
        """A window whose every token is predicted, as in `Causal`: it reads the token before it,
        or `begin` where a document does, and says its own."""
        start = int(self.starts[index])
        targets = self.documents.values[start : start + self.lengths[index]].astype(np.int32)
        opens = start == self.documents.offsets[self.rows[index]]
        before = begin if opens else self.documents.values[start - 1]
        tokens = np.concatenate([np.asarray([before], np.int32), targets[:-1]])
        return Piece(tokens, targets, np.ones(len(targets), np.float32))

    def text_bytes(
        self, totals: np.ndarray, byte_lengths: np.ndarray, skipped: np.ndarray
    ) -> np.ndarray:
        """[N] int64 UTF-8 bytes of each window's text after its first `skipped` tokens.

        Args:
          totals: bytes of each document, which its windows and what they skip add up to. What the
            tokens hold beside (a space that the tokenizer puts in front) counts with the first.
          byte_lengths: [V] bytes of each token.
          skipped: [N] below `lengths`.
        """
        if len(self) == len(self.documents) and not skipped.any():
            return totals
        before, after = np.zeros(len(self), np.int64), np.zeros(len(self), np.int64)
        for chunk in range(0, int(self.documents.offsets[-1]), _CHUNK):
            here = slice(*np.searchsorted(self.starts, [chunk, chunk + _CHUNK]))
            starts, lengths, left_out = self.starts[here], self.lengths[here], skipped[here]
            if not len(starts):
                continue
            tokens = self.documents.values[starts[0] : starts[-1] + lengths[-1]]
            running = np.concatenate([[0], np.cumsum(byte_lengths[tokens], dtype=np.int64)])
            starts = starts - starts[0]
            before[here] = running[starts + left_out] - running[starts]
            after[here] = running[starts + lengths] - running[starts + left_out]
        beside = -totals
        np.add.at(beside, self.rows, before + after)
        first = np.flatnonzero(self.starts == self.documents.offsets[self.rows])
        after[first] -= np.where(skipped[first], 0, beside[self.rows[first]])
        return after


def uniform(seed: int, examples: np.ndarray | int, draws: np.ndarray | int) -> np.ndarray:
    """Evenly distributed numbers in [0, 1), one for each pair of example and draw (broadcast).

    Draw d is the d-th number of a SplitMix64 generator (Steele et al. 2014) that starts at a hash
    of seed and example: no state is kept, and every host and version of numpy gives the same.
    """
    of_example = splitmix64(np.asarray(examples, np.uint64))
    start = splitmix64(splitmix64(np.uint64(seed % 2**64)) ^ of_example)
    with np.errstate(over="ignore"):  # Arithmetic modulo 2^64 is meant.
        state = start + np.asarray(draws, np.uint64) * STEP
    mixed = splitmix64(state)
    return (mixed >> np.uint64(11)) * 2.0**-53
