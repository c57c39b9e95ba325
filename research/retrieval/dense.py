"""Passages by what a model makes of them: the cosine of mean-pooled hidden states."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from research.config.schema import to_dict
from research.data.cached_folder import cached_folder
from research.retrieval.base import RetrievalConfig, Searcher
from research.retrieval.models import Reader, load_reader, open_reader
from research.retrieval.passages import Passages

# Part of every key: raise it when the files or their meaning change.
SCHEMA = 1
_VECTORS = "vectors.npy"


@dataclasses.dataclass(frozen=True)
class Dense(RetrievalConfig):
    """Passages and questions are embedded by a run's model: an imported base, or a tuned one."""

    _: dataclasses.KW_ONLY
    # the run whose model embeds them
    embedder: str
    # whether the mean of all passages is subtracted from passages and questions: what all texts
    # have in common is most of a language model's hidden state
    centered: bool = True
    kind: Literal["dense"] = "dense"

    @property
    def model(self) -> str:
        return self.embedder

    @contextlib.contextmanager
    def open(self, passages: Passages, cache: Path) -> Iterator[Searcher]:
        run = open_reader(self.embedder)
        key = {
            "dense": SCHEMA,
            "passages": passages.key,
            "model": [run.fingerprint, to_dict(run.model), to_dict(run.method)],
            "tokenizer": run.tokenizer.fingerprint(),
        }
        with load_reader(run) as reader:

            def write(folder: Path) -> None:
                vectors = reader.embed(passages.texts(), f"embed {passages.name}")
                np.save(folder / _VECTORS, vectors)

            folder = cached_folder(cache, key, f"dense index of {passages.name}", write)
            yield _DenseSearcher(reader, np.load(folder / _VECTORS), self.centered)


class _DenseSearcher:
    def __init__(self, reader: Reader, vectors: np.ndarray, is_centered: bool):
        self._reader = reader
        self._mean = vectors.mean(axis=0) if is_centered else np.zeros_like(vectors[0])
        self._vectors = unit(vectors - self._mean)

    def scores(self, queries: Sequence[str]) -> np.ndarray:
        return unit(self._reader.embed(queries, "questions") - self._mean) @ self._vectors.T

    def similarity(self, rows: np.ndarray) -> np.ndarray:
        return self._vectors[rows] @ self._vectors[rows].T


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors [n,D] of length 1; zero stays zero."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-30)
