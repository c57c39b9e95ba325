"""Orders passages by how likely a model finds the question after each (Sachan et al. 2022,
arXiv:2204.07496)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from research.batch import Batch
from research.retrieval.models import Reader
from research.training.heldout_loss import make_score


@dataclasses.dataclass(frozen=True)
class Likelihood:
    """A reranker: the log-probability of the question's tokens, given the passage."""

    # the run whose model reads them
    model: str
    # how a passage is written in front of the question
    template: str = "{text}\n\n"

    def __post_init__(self) -> None:
        if "{text}" not in self.template:
            raise ValueError(f"rerank.template must have {{text}}, not only {self.template!r}")


def log_likelihoods(reader: Reader, template: str, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
    """[n] float32 mean log-probability (nats a token) of each question after its passage.

    Args:
      reader: the model.
      template: how a passage is written, with `{text}`.
      pairs: passage and question.
    """
    if reader.run.method.head_outputs:
        raise ValueError(f"{reader.run.path} has a head for classes, and says no text's likelihood")
    tokenizer = reader.run.tokenizer
    before = tokenizer.encode_batch([template.replace("{text}", text) for text, _ in pairs])
    questions = tokenizer.encode_batch([question for _, question in pairs])
    rows = [
        ([tokenizer.begin_id, *first, *question], len(question))
        for first, question in zip(before, questions, strict=True)
    ]
    score = make_score(reader.model, reader.rows)
    means = np.zeros(len(pairs), np.float32)
    for numbers, size in reader.batches([len(ids) - 1 or 1 for ids, _ in rows], "rerank"):
        parts = [_row(rows[number][0], rows[number][1], size) for number in numbers]
        batch = Batch(*(np.stack(column) for column in zip(*parts, strict=True)))
        nats = np.sum(score(batch) * batch.weights, axis=1)
        means[numbers] = -nats / np.maximum(batch.weights.sum(axis=1), 1)
    if not np.isfinite(means).all():
        raise ValueError(f"{reader.run.path}: likelihoods that are not finite: broken weights")
    return means


def _row(ids: Sequence[int], count: int, size: int) -> tuple[np.ndarray, ...]:
    """tokens, targets, weights, segments, positions, each [size]; the last `count` are weighed."""
    tokens, targets, weights, segments, positions = np.zeros((5, size), np.int32)
    length = len(ids) - 1
    tokens[:length], targets[:length], segments[:length] = ids[:-1], ids[1:], 1
    weights[length - count : length] = 1
    positions[:length] = np.arange(length)
    return tokens, targets, weights.astype(np.float32), segments, positions
