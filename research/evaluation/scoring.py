"""Choosing among given answers, by their likelihoods.

The batches are those of the one evaluation step. A row holds the question once, as a segment that
all its answers see, and each answer as a document of its own; so the question is computed once and
no answer sees another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from research.batch import PADDING, SHARED, Batch
from research.training.heldout_loss import Score


class Choice(NamedTuple):
    """Scores [N,C]: log-likelihood in nats of each of C answers, its end-of-text included."""

    scores: np.ndarray
    tokens: int  # tokens that the model read

    @property
    def best(self) -> np.ndarray:
        """[N] the likeliest answer."""
        return np.argmax(self.scores, axis=1)


def choose(
    score: Score,
    questions: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    batch_size: int,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> Choice:
    """Scores every answer after every question.

    Args:
      questions: N token sequences, begin token and template included.
      answers: C token sequences, end-of-text included.
      batch_size: rows of one evaluation batch.
      progress: wraps the loop over batches, such as tqdm.

    Raises:
      ValueError: for an empty question or answer.
    """
    if not questions or not answers or not all(map(len, [*questions, *answers])):
        raise ValueError("choosing needs at least one question and one answer, none of them empty")
    length = max(map(len, questions)) - 1 + sum(map(len, answers))
    length = -(-length // 64) * 64  # one program for many lengths
    rows = [choice_row(question, answers, length) for question in questions]
    scores = np.zeros((len(questions), len(answers)))
    for start in progress(range(0, len(rows), batch_size)):
        part = rows[start : start + batch_size]
        full = part + [part[-1]] * (batch_size - len(part))  # one shape for the last batch too
        batch = Batch(*(np.stack(column) for column in zip(*full, strict=True)), shared=True)
        nll = score(batch) * batch.weights
        for row, question in enumerate(range(start, start + len(part))):
            sums = np.bincount(
                np.maximum(batch.segments[row], 0), nll[row], minlength=len(answers) + 1
            )
            scores[question] = -sums[1:]
    if not np.isfinite(scores).all():
        raise ValueError("the model's likelihoods are not finite: its weights are broken")
    tokens_read = sum(int(np.sum(row[3] != PADDING)) for row in rows)
    return Choice(scores, tokens_read)


def choice_row(
    question: Sequence[int], answers: Sequence[Sequence[int]], length: int
) -> tuple[np.ndarray, ...]:
    """tokens, targets, weights, segments, positions, each [length].

    The question's last token is repeated in front of each answer: it predicts the answer's
    first token, and it must not see the other answers.
    """
    tokens, targets, weights, segments, positions = np.zeros((5, length), np.int32)
    shared = len(question) - 1
    tokens[:shared], segments[:shared] = question[:-1], SHARED
    positions[:shared] = np.arange(shared)
    at = shared
    for number, answer in enumerate(answers, start=1):
        place = slice(at, at + len(answer))
        tokens[place] = [question[-1], *answer[:-1]]
        targets[place], weights[place], segments[place] = answer, 1, number
        positions[place] = shared + np.arange(len(answer))
        at += len(answer)
    return tokens, targets, weights.astype(np.float32), segments, positions
