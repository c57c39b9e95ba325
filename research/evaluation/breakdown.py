"""Where a model is right: by field, by length of the prompt, by label, and by how sure it is."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from research.evaluation.calibration import BINS, bin_numbers
from research.evaluation.results import Answer, TaskResult, estimate, groups_of
from research.reports.statistics import Estimate, proportion_interval

# Most rows of a breakdown, and labels of a confusion matrix.
MAX_SLICES = 20
MAX_LABELS = 30
# Most bins of prompts' lengths, and answers that each has at least.
_LENGTHS, _IN_A_BIN = 5, 8
OTHER = "(another)"


@dataclasses.dataclass(frozen=True)
class Slice:
    """The answers that have something in common."""

    name: str
    n: int
    # metric -> mean with its interval; a number alone where so few carry none
    metrics: Mapping[str, Estimate | float]


@dataclasses.dataclass(frozen=True)
class Confusion:
    """How often each label was given for each."""

    labels: Sequence[str]
    # of the columns: the labels, and what is none of them where it was given
    answers: Sequence[str]
    # [labels, answers]
    counts: np.ndarray


@dataclasses.dataclass(frozen=True)
class SurenessBin:
    """Answers of which the model was about equally sure."""

    low: float
    high: float
    # mean probability that it gave its answers
    confidence: float
    right: Estimate


@dataclasses.dataclass(frozen=True)
class Breakdown:
    """A result in its parts."""

    # what answers are told apart by -> its slices
    slices: Mapping[str, Sequence[Slice]]
    confusion: Confusion | None
    # empty: the model chose among no options
    sureness: Sequence[SurenessBin]

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        confusion = self.confusion
        return {
            "slices": {
                name: [
                    {"name": each.name, "n": each.n}
                    | {"metrics": {m: _as_json(value, each.n) for m, value in each.metrics.items()}}
                    for each in slices
                ]
                for name, slices in self.slices.items()
            },
            "confusion": None
            if confusion is None
            else {
                "labels": list(confusion.labels),
                "answers": list(confusion.answers),
                "counts": confusion.counts.tolist(),
            },
            "sureness": [dataclasses.asdict(each) for each in self.sureness],
        }


def break_down(result: TaskResult) -> Breakdown:
    """A result by the fields that its config names, by group where there are few, by length of the
    prompt, by label and by sureness."""
    answers = result.answers
    slices: dict[str, Sequence[Slice]] = {}
    for name in dict.fromkeys(name for answer in answers for name in answer.fields):
        slices[name] = _by_value(answers, [answer.fields.get(name, "") for answer in answers])
    groups = groups_of(answers)
    if groups is not None and len(set(groups)) <= MAX_SLICES:
        # what is said of one group is of its own answers
        alone = [dataclasses.replace(answer, group=None) for answer in answers]
        slices["group"] = _by_value(alone, groups.tolist())
    if lengths := by_length(answers):
        slices["prompt tokens"] = lengths
    return Breakdown(slices, confuse(answers), sureness(result))


def by_length(answers: Sequence[Answer]) -> list[Slice]:
    """Answers by quantiles of their prompts' tokens; nothing where these differ too little.

    Prompts of one length are together, so that bins may differ in size.
    """
    lengths = np.asarray([answer.prompt_tokens for answer in answers])
    count = min(_LENGTHS, len(lengths) // _IN_A_BIN)
    if count < 2:
        return []
    shares = np.arange(1, count) / count
    edges = np.unique(np.quantile(lengths, shares, method="inverted_cdf"))
    numbers = np.searchsorted(edges, lengths)
    bins = [np.flatnonzero(numbers == number) for number in np.unique(numbers)]
    if len(bins) < 2:
        return []
    ends = [(int(lengths[rows].min()), int(lengths[rows].max())) for rows in bins]
    names = [f"{low:,} to {high:,}" if low < high else f"{low:,}" for low, high in ends]
    return [
        _slice(name, [answers[i] for i in rows.tolist()])
        for name, rows in zip(names, bins, strict=True)
    ]


def confuse(answers: Sequence[Answer]) -> Confusion | None:
    """Answers by what is right, where a few texts are, each of several questions; else by the place
    of the option, where there were options. None: there is nothing to confuse.

    An answer is a label by its words, whatever their case and the white space around them.
    """
    by_place = [answer.places for answer in answers if answer.places is not None]
    references = [answer.reference for answer in answers if answer.reference is not None]
    names = collections.Counter(references)
    if len(references) == len(answers) and 2 <= len(names) <= min(MAX_LABELS, len(answers) // 2):
        known = {name.strip().casefold(): name for name in names}
        predictions = [known.get(answer.answer.strip().casefold(), OTHER) for answer in answers]
        labels = [name for name, _ in sorted(names.items(), key=lambda each: (-each[1], each[0]))]
        columns = labels + [OTHER] * (OTHER in predictions)
        return _count(labels, columns, references, predictions)
    if len(by_place) == len(answers) and by_place:
        size = max(map(max, by_place)) + 1
        letters = [chr(ord("A") + place) if size <= 26 else str(place) for place in range(size)]
        pairs = [(letters[right], letters[answer]) for answer, right in by_place]
        return _count(letters, letters, *zip(*pairs, strict=True))
    return None


def never_given(answers: Sequence[Answer]) -> list[str]:
    """Labels, of a few that are right for several questions each, that no answer is."""
    confusion = confuse(answers)
    if confusion is None or answers[0].reference not in confusion.labels:  # places of options
        return []
    counts = confusion.counts.sum(axis=0)
    return [label for label, count in zip(confusion.labels, counts, strict=False) if not count]


def sureness(result: TaskResult, bins: int = BINS) -> list[SurenessBin]:
    """The bins over which calibration is measured, those that have answers."""
    metric = next(iter(result.metrics), None)
    sure = [a for a in result.answers if a.confidence is not None and metric in a.scores]
    if metric is None or not sure:
        return []
    confidences = np.asarray([answer.confidence for answer in sure])
    right = np.asarray([answer.scores[metric] for answer in sure])
    numbers = bin_numbers(confidences, bins)
    return [
        SurenessBin(
            low=number / bins,
            high=(number + 1) / bins,
            confidence=float(confidences[numbers == number].mean()),
            right=proportion_interval(right[numbers == number]),
        )
        for number in map(int, np.unique(numbers))
    ]


def _by_value(answers: Sequence[Answer], values: Sequence[str]) -> list[Slice]:
    """Answers by a value, the most frequent first; what is beyond the most rows is one."""
    members: dict[str, list[Answer]] = collections.defaultdict(list)
    for answer, value in zip(answers, values, strict=True):
        members[value].append(answer)
    names = sorted(members, key=lambda name: (-len(members[name]), name))
    slices = [_slice(name, members[name]) for name in names[:MAX_SLICES]]
    if rest := names[MAX_SLICES:]:
        others = [answer for name in rest for answer in members[name]]
        slices.append(_slice(f"{len(rest):,} others", others))
    return slices


def _slice(name: str, answers: Sequence[Answer]) -> Slice:
    metrics = dict.fromkeys(metric for answer in answers for metric in answer.scores)
    values: dict[str, Estimate | float] = {}
    for metric in metrics:
        having = [answer for answer in answers if metric in answer.scores]
        groups = groups_of(having)
        is_one = len(having) < 2 or (groups is not None and len(set(groups)) < 2)
        mean = float(np.mean([answer.scores[metric] for answer in having]))
        values[metric] = mean if is_one else estimate(having, metric)
    return Slice(name, len(answers), values)


def _count(
    labels: Sequence[str], columns: Sequence[str], right: Sequence[str], predictions: Sequence[str]
) -> Confusion:
    row = {label: number for number, label in enumerate(labels)}
    column = {label: number for number, label in enumerate(columns)}
    counts = np.zeros((len(labels), len(columns)), int)
    for expected, answer in zip(right, predictions, strict=True):
        counts[row[expected], column[answer]] += 1
    return Confusion(labels, columns, counts)


def _as_json(value: Estimate | float, n: int) -> dict[str, Any]:
    if isinstance(value, Estimate):
        return dataclasses.asdict(value)
    return {"value": value, "low": math.nan, "high": math.nan, "n": n}
