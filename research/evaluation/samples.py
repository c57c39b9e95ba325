"""Several answers to one question: what they come to together."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from research.evaluation.results import Answer


class Majority(NamedTuple):
    """What most samples say."""

    # of the first sample that says it
    sample: int
    # share of all samples that say it
    agreement: float


def find_majority(readings: Sequence[str | None]) -> Majority:
    """The answer that most samples agree on (Wang 2023, arXiv:2203.11171); of ties the first.

    Args:
      readings: [N] what each sample says, None where nothing could be read: it agrees with none.
    """
    counts = collections.Counter(reading for reading in readings if reading is not None)
    if not counts:
        return Majority(0, 0.0)
    reading, count = counts.most_common(1)[0]  # of ties the first that it counted
    return Majority(readings.index(reading), count / len(readings))


def pass_at_k(samples: int, passed: int, k: int) -> float:
    """Probability that one of k samples passes, without bias from more of them (Chen 2021,
    arXiv:2107.03374, equation 1): that k of them drawn without return are not all wrong."""
    return 1.0 - math.comb(samples - passed, k) / math.comb(samples, k)


def question_seed(seed: int, row: int) -> int:
    """A seed of its own for each question, by its row in the split; in [0, 2^31)."""
    return int(np.random.SeedSequence([seed, row]).generate_state(1)[0] >> 1)


def join_samples(samples: Sequence[Answer], readings: Mapping[str, Sequence[str | None]]) -> Answer:
    """One answer of a question, of all its samples: what most say, with the mean of each score.

    `agreement/SCORER` is the share of samples that say what most do, and `majority/METRIC` the
    score of that. An answer that is cut, or unreadable, is one of them.

    Args:
      samples: answers to one question.
      readings: scorer -> what each sample says to it; the first one's majority is the answer.
    """
    scores = {
        name: [answer.scores[name] for answer in samples if name in answer.scores]
        for name in dict.fromkeys(name for answer in samples for name in answer.scores)
    }
    values = {name: math.fsum(each) / len(each) for name, each in scores.items()}
    majorities = {label: find_majority(each) for label, each in readings.items()}
    for label, majority in majorities.items():
        values[f"agreement/{label}"] = majority.agreement
        best = samples[majority.sample]
        own = [name for name in best.scores if _is_of(name, label, readings)]
        values |= {f"majority/{name}": best.scores[name] for name in own}
    first = samples[next(iter(majorities.values())).sample]
    weights = {name: first.weights[name] for name in first.weights if name in values}
    more = {f"majority/{name}": count for name, count in weights.items()}
    unreadable = [answer.unreadable for answer in samples if answer.unreadable]
    failures = [answer.failure for answer in samples if answer.failure]
    return dataclasses.replace(
        first,
        scores=values,
        weights=weights | more,
        is_cut=any(answer.is_cut for answer in samples),
        failure=f"{len(failures)} of {len(samples)}: {failures[0]}" if failures else "",
        unreadable=f"{len(unreadable)} of {len(samples)}: {unreadable[0]}" if unreadable else "",
        new_tokens=sum(answer.new_tokens for answer in samples),
        samples=[answer.answer for answer in samples],
        sample_scores=scores,
        sample_tokens=[answer.new_tokens for answer in samples],
    )


def _is_of(metric: str, label: str, labels: Mapping[str, object]) -> bool:
    """Whether a metric is of the scorer of this label."""
    own = [each for each in labels if metric == each or metric.startswith(f"{each}/")]
    return bool(own) and max(own, key=len) == label


def add_pass_at(answers: Sequence[Answer], ks: Sequence[int]) -> list[Answer]:
    """The answers with `pass@K/METRIC`, of each metric whose scores are all 0 or 1."""
    names = dict.fromkeys(name for answer in answers for name in answer.sample_scores)
    weighted = {name for answer in answers for name, count in answer.weights.items() if count != 1}
    binary = [
        name
        for name in names
        if name not in weighted
        and all(set(answer.sample_scores.get(name, ())) <= {0, 1} for answer in answers)
    ]

    def passes(answer: Answer) -> dict[str, float]:
        return {
            f"pass@{k}/{name}": pass_at_k(len(values), int(sum(values)), k)
            for k in ks
            for name in binary
            if len(values := answer.sample_scores.get(name, ())) >= k
        }

    return [
        dataclasses.replace(answer, scores={**answer.scores, **passes(answer)})
        for answer in answers
    ]
