"""The best passages for each question, in an order that does not depend on how it is computed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from research.retrieval import likelihood, models
from research.retrieval.base import RetrievalConfig, Searcher
from research.retrieval.passages import Passages

# Questions that are scored against all passages at a time; bounds memory.
_BLOCK = 64


@dataclasses.dataclass(frozen=True)
class Ranking:
    """The best passages for a question, best first."""

    # [n] numbers of passages; fewer than asked for where no others have to do with it
    rows: np.ndarray
    # [n] float32 of the index, or of the reranker
    scores: np.ndarray


def rank(
    config: RetrievalConfig,
    searcher: Searcher,
    passages: Passages,
    queries: Sequence[str],
    left_out: np.ndarray,
) -> list[Ranking]:
    """The best passages for each query: found, ordered again, made diverse, as the config says.

    Args:
      left_out: [N] bool of passages that are not retrieved.
    """
    rankings = []
    for start in range(0, len(queries), _BLOCK):
        scores = searcher.scores(queries[start : start + _BLOCK])
        scores = np.where(left_out, -np.inf, scores)
        rankings += [best(row, config.depth) for row in scores]
    if config.rerank is not None:
        rankings = _rerank(config.rerank, passages, queries, rankings)
    if config.diversity > 0:
        rankings = [
            _diversify(each, searcher.similarity(each.rows), config.diversity) for each in rankings
        ]
    return rankings


def best(scores: np.ndarray, count: int) -> Ranking:
    """The highest of scores [N] that are not -inf, of equal ones the first."""
    count = min(count, int(np.sum(scores > -np.inf)))
    if not count:
        return Ranking(np.zeros(0, np.int64), np.zeros(0, np.float32))
    least = np.partition(scores, len(scores) - count)[len(scores) - count]
    rows = np.flatnonzero(scores >= least)
    rows = rows[np.argsort(-scores[rows], kind="stable")][:count]
    return Ranking(rows, scores[rows])


def marginal_order(relevance: np.ndarray, similarity: np.ndarray, diversity: float) -> list[int]:
    """Maximal marginal relevance (Carbonell and Goldstein 1998): each next one has the highest
    (1 - diversity) relevance - diversity (its similarity to the most alike of those before it).

    Args:
      relevance: [n].
      similarity: [n,n].
      diversity: from 0 to 1.
    """
    order: list[int] = []
    nearest = np.zeros(len(relevance))
    remaining = np.ones(len(relevance), bool)
    for _ in relevance:
        gains = (1 - diversity) * relevance - diversity * nearest
        chosen_row = int(np.argmax(np.where(remaining, gains, -np.inf)))
        order.append(chosen_row)
        remaining[chosen_row] = False
        nearest = (
            similarity[chosen_row]
            if len(order) == 1
            else np.maximum(nearest, similarity[chosen_row])
        )
    return order


def _diversify(ranking: Ranking, similarity: np.ndarray, diversity: float) -> Ranking:
    """Relevance is a score's place between the lowest and the highest, so that every index's
    scores can be weighed against similarities."""
    if len(ranking.rows) < 2:
        return ranking
    scores = ranking.scores.astype(np.float64)
    relevance = (scores - scores.min()) / max(float(np.ptp(scores)), 1e-30)
    order = marginal_order(relevance, similarity, diversity)
    return Ranking(ranking.rows[order], ranking.scores[order])


def _rerank(
    settings: likelihood.Likelihood,
    passages: Passages,
    queries: Sequence[str],
    rankings: Sequence[Ranking],
) -> list[Ranking]:
    pairs = [
        (passages[row].content, query)
        for query, ranking in zip(queries, rankings, strict=True)
        for row in ranking.rows
    ]
    with models.load_reader(models.open_reader(settings.model)) as reader:
        scores = likelihood.log_likelihoods(reader, settings.template, pairs)
    ordered, start = [], 0
    for ranking in rankings:
        part = scores[start : start + len(ranking.rows)]
        order = np.argsort(-part, kind="stable")
        ordered.append(Ranking(ranking.rows[order], part[order]))
        start += len(ranking.rows)
    return ordered
