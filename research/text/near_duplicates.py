"""Near-duplicate texts: clusters and nearest similarities over word shingles, exactly.

Two texts are compared by the sets of their word 5-grams ("shingles"). All pairs are computed
exactly, as products of sparse 0/1 matrices in blocks of rows: 8,000 notices take about 2 s, so
the misses of locality-sensitive hashing need not be hunted. Shingles that only one text has are
left out of the product (they cannot be shared), which is most of them.

Measures, for shingle sets a and b:
    jaccard      |a & b| / |a | b|        copies of about the same length
    containment  |a & b| / min(|a|, |b|)  also a poem within a collection of poems
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import scipy.sparse as sparse
from scipy.sparse.csgraph import connected_components

from research.text.normalize import words_of

Measure = Literal["jaccard", "containment"]
BLOCK_ROWS = 256


def shingles(text: str, size: int = 5) -> set[str]:
    """The lower-cased word n-grams of a text; a text of fewer words is one shingle."""
    words = words_of(text)
    return {" ".join(words[i : i + size]) for i in range(max(1, len(words) - size + 1))}


def shingle_matrix(texts: Sequence[str], size: int = 5) -> sparse.csr_array:
    """0/1 matrix [N, V] int32 of which text (row) has which shingle (column)."""
    column: dict[str, int] = {}
    indices: list[np.ndarray] = []
    for text in texts:
        row_columns = [column.setdefault(shingle, len(column)) for shingle in shingles(text, size)]
        indices.append(np.asarray(row_columns, np.int32))
    starts = np.cumsum([0, *(len(row) for row in indices)])
    columns = np.concatenate(indices) if indices else np.zeros(0, np.int32)
    data = np.ones(len(columns), np.int32)
    return sparse.csr_array((data, columns, starts), shape=(len(texts), max(1, len(column))))


def _similarities(
    left: sparse.csr_array, right: sparse.csr_array, measure: Measure
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Blocks of (row of left, row of right, similarity) for pairs that share a shingle."""
    if measure not in ("jaccard", "containment"):
        raise ValueError(f"unknown measure {measure!r}: use 'jaccard' or 'containment'")
    left_size, right_size = left.sum(axis=1), right.sum(axis=1)
    shared = np.flatnonzero((left.sum(axis=0) > 0) & (right.sum(axis=0) > 0))
    if left is right:
        shared = np.flatnonzero(left.sum(axis=0) > 1)
    left, transposed = left[:, shared], right[:, shared].T.tocsr()
    for start in range(0, left.shape[0], BLOCK_ROWS):
        common = (left[start : start + BLOCK_ROWS] @ transposed).tocoo()
        rows, columns = common.row + start, common.col
        a, b = left_size[rows], right_size[columns]
        whole = a + b - common.data if measure == "jaccard" else np.minimum(a, b)
        yield rows, columns, common.data / whole


def clusters(
    texts: Sequence[str], threshold: float = 0.5, *, size: int = 5, measure: Measure = "jaccard"
) -> np.ndarray:
    """Cluster number of each text [N] int64: connected components of "similarity >= threshold".

    So no text of one cluster reaches the threshold with a text of another. Numbers count up in
    the order of each cluster's first text.

    Args:
        texts: N texts.
        threshold: in (0, 1].
        size: words per shingle.
        measure: "jaccard" or "containment", see the module's docstring.

    Raises:
        ValueError: threshold outside (0, 1] or unknown measure.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold must be in (0, 1], got {threshold}")
    n = len(texts)
    matrix = shingle_matrix(texts, size)
    rows, columns = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for row, column, similarity in _similarities(matrix, matrix, measure):
        near = similarity >= threshold
        rows.append(row[near])
        columns.append(column[near])
    edges = (np.concatenate(rows), np.concatenate(columns))
    graph = sparse.coo_array((np.ones(len(edges[0]), np.int8), edges), shape=(n, n))
    _, component = connected_components(graph, directed=False)
    _, first, number = np.unique(component, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[number].astype(np.int64)


def nearest_similarity(
    queries: Sequence[str],
    references: Sequence[str],
    *,
    size: int = 5,
    measure: Measure = "jaccard",
) -> tuple[np.ndarray, np.ndarray]:
    """For each query its largest similarity to any reference [M] float64, and which one [M] int64.

    The index is -1 where nothing is shared.
    """
    m = len(queries)
    matrix = shingle_matrix([*queries, *references], size)
    best, index = np.zeros(m), np.full(m, -1, np.int64)
    for rows, columns, similarity in _similarities(matrix[:m], matrix[m:], measure):
        # Sort by (query, similarity): the last pair of each query is its nearest.
        order = np.lexsort((-columns, similarity, rows))
        rows, columns, similarity = rows[order], columns[order], similarity[order]
        last = np.flatnonzero(np.diff(rows, append=-1))
        best[rows[last]], index[rows[last]] = similarity[last], columns[last]
    return best, index
