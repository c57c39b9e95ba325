"""How well the right passages are found: recall among the best k, and the reciprocal rank."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np


def recall(documents: Sequence[str], right: Collection[str], k: int | None = None) -> float:
    """The share of the right documents that are among the first k retrieved; None: among all."""
    return len(set(documents[:k]) & set(right)) / len(set(right))


def reciprocal_rank(documents: Sequence[str], right: Collection[str]) -> float:
    """1 over the place of the first right one, from 1; 0 where there is none."""
    places = [place for place, document in enumerate(documents, start=1) if document in right]
    return 1 / places[0] if places else 0.0


def measure(
    documents: Sequence[str], right: Collection[str], measure_at: Sequence[int]
) -> dict[str, float]:
    """`recall@k` of every k, and `mrr@k` of the largest: the mean of a question's is the measure's.

    Args:
      documents: of the passages, best first; one may come several times.
      right: at least one.
      measure_at: the ks, at least one.
    """
    scores = {f"recall@{k}": recall(documents, right, k) for k in sorted(set(measure_at))}
    deepest = int(np.max(measure_at))
    return scores | {f"mrr@{deepest}": reciprocal_rank(documents[:deepest], right)}
