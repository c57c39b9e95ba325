"""Passages by the words that they share with a question: BM25 (Robertson et al. 1995)."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy import sparse

from research.config.schema import NonNegative, Share
from research.data.cached_folder import cached_folder
from research.retrieval.base import RetrievalConfig, Searcher
from research.retrieval.passages import Passages
from research.text.normalize import words_of

# Part of every key: raise it when the files or their meaning change.
SCHEMA = 1


@dataclasses.dataclass(frozen=True)
class Bm25(RetrievalConfig):
    """Words, lower-cased and without punctuation; scores as Lucene computes them.

    A word w of the query adds ln(1 + (N - n + 1/2) / (n + 1/2)) f / (f + k1 (1 - b + b l / m)) for
    a passage of l words that has it f times; n of N passages have it, and m is their mean length.
    """

    _: dataclasses.KW_ONLY
    # how slowly a word that is repeated counts more, and how much long passages count less
    k1: NonNegative = 1.5
    b: Share = 0.75
    kind: Literal["bm25"] = "bm25"

    @contextlib.contextmanager
    def open(self, passages: Passages, cache: Path) -> Iterator[Searcher]:
        import bm25s  # here: it looks for devices

        logging.getLogger("bm25s").setLevel(logging.WARNING)  # it says what it does

        def write(folder: Path) -> None:
            words = [words_of(text) for text in passages.texts()]
            # in the order of the alphabet: a set's would be another in each process
            vocabulary = {w: i for i, w in enumerate(sorted({w for each in words for w in each}))}
            if not vocabulary:
                raise ValueError(f"{passages.name}: nothing to retrieve: no passage has a word")
            ids = [[vocabulary[word] for word in each] for each in words]
            index = bm25s.BM25(k1=self.k1, b=self.b, method="lucene")
            index.index((ids, vocabulary), create_empty_token=False, show_progress=False)
            index.save(folder, show_progress=False)

        key = {"bm25": SCHEMA, "passages": passages.key, "k1": self.k1, "b": self.b}
        folder = cached_folder(cache, key, f"BM25 index of {passages.name}", write)
        yield _Bm25Searcher(bm25s.BM25.load(folder, mmap=True), len(passages))


class _Bm25Searcher:
    def __init__(self, index: Any, count: int):
        self._index, self._count = index, count

    def scores(self, queries: Sequence[str]) -> np.ndarray:
        scores = np.full((len(queries), self._count), -np.inf, np.float32)
        for row, query in enumerate(queries):
            vocabulary = self._index.vocab_dict
            ids = [vocabulary[word] for word in words_of(query) if word in vocabulary]
            if ids:
                sums = self._index.get_scores_from_ids(ids)
                scores[row] = np.where(sums > 0, sums, -np.inf)
        return scores

    def similarity(self, rows: np.ndarray) -> np.ndarray:
        """The cosine of the passages' weights of words."""
        index = self._index.scores
        shape = (self._count, len(index["indptr"]) - 1)
        columns = sparse.csc_array((index["data"], index["indices"], index["indptr"]), shape=shape)
        weights = columns[np.asarray(rows)]
        norms = np.maximum(np.sqrt(weights.multiply(weights).sum(axis=1)), 1e-30)
        return ((weights @ weights.T).toarray() / norms[:, None] / norms[None]).astype(np.float32)
