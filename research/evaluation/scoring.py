"""Choosing among given answers, by their likelihoods.

The batches are those of the one evaluation step. A row holds the question once, as a segment that
all its answers see, and each answer as a document of its own; so the question is computed once and
no answer sees another.
"""

from __future__ import annotations

import collections
from collections.abc import Collection, Iterable, Iterator, Sequence

import numpy as np

from research.batch import SHARED, Batch, bucket_length
from research.training.heldout_loss import Score

# tokens, targets, weights, segments, positions
Row = tuple[np.ndarray, ...]


def score_options(
    score: Score,
    questions: Sequence[Sequence[int]],
    options: Sequence[Sequence[Sequence[int]]],
    batch_size: int,
) -> list[np.ndarray]:
    """Scores the options that each question has.

    Args:
      questions: N token sequences, begin token and template included.
      options: of each question, token sequences.
      batch_size: rows of one evaluation batch.

    Returns:
      Of each question the log-likelihoods of its options, in nats.

    Raises:
      ValueError: for an empty question or option.
    """
    scores: dict[int, np.ndarray] = {}
    for part in score_in_batches(score, questions, options, batch_size):
        scores |= part
    return [scores[number] for number in range(len(questions))]


def score_in_batches(
    score: Score,
    questions: Sequence[Sequence[int]],
    options: Sequence[Sequence[Sequence[int]]],
    batch_size: int,
    finished: Collection[int] = (),
    is_one_length: bool = False,
) -> Iterator[dict[int, np.ndarray]]:
    """Yields what `score_options` gives a batch at a time, by the numbers of the questions.

    Args:
      finished: questions that have scores. A batch of these alone is left out, and no other changed
        by it.
      is_one_length: whether all rows are as long as the longest, for one program instead of less
        padding.
    """
    if not all(map(len, questions)) or not all(all(map(len, each)) for each in options):
        raise ValueError("no question and no option may be empty of tokens")
    lengths = [tokens_of(*each) for each in zip(questions, options, strict=True)]
    longest = -(-max(lengths, default=0) // 8) * 8  # as memory has them
    buckets: dict[int, list[int]] = collections.defaultdict(list)
    for number, length in enumerate(lengths):
        buckets[longest if is_one_length else bucket_length(length)].append(number)
    for length, members in sorted(buckets.items()):
        most = most_targets([options[number] for number in members])
        for start in range(0, len(members), batch_size):
            numbers = members[start : start + batch_size]
            if all(number in finished for number in numbers):
                continue
            rows = [choice_row(questions[i], options[i], length) for i in numbers]
            counts = [len(options[i]) for i in numbers]
            scores = _score_rows(score, rows, counts, batch_size, most)
            yield dict(zip(numbers, scores, strict=True))


def tokens_of(question: Sequence[int], options: Sequence[Sequence[int]]) -> int:
    """Tokens that the model reads to score a question's options: those of its row."""
    return len(question) - 1 + sum(map(len, options))


def most_targets(options: Iterable[Sequence[Sequence[int]]]) -> int:
    """Of rows of such options the most that is predicted in one, rounded up."""
    return bucket_length(max(sum(map(len, each)) for each in options), shortest=16)


def _score_rows(
    score: Score, rows: Sequence[Row], counts: Sequence[int], batch_size: int, most: int
) -> list[np.ndarray]:
    """Of each row of a batch the log-likelihoods of its answers."""
    full = [*rows, *([rows[-1]] * (batch_size - len(rows)))]  # one shape for the last batch too
    columns = (np.stack(column) for column in zip(*full, strict=True))
    batch = Batch(*columns, shared=True, most_targets=most)
    nll = score(batch) * batch.weights
    scores = []
    for row, count in enumerate(counts):
        sums = np.bincount(np.maximum(batch.segments[row], 0), nll[row], minlength=count + 1)
        scores.append(-sums[1:])
    if not np.isfinite(np.concatenate(scores)).all():
        raise ValueError("the model's likelihoods are not finite: its weights are broken")
    return scores


def choice_row(question: Sequence[int], answers: Sequence[Sequence[int]], length: int) -> Row:
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
