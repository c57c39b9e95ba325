"""How much of an answer stands in the right one, in its order."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from research.evaluation.scorers.base import Scorer, Scores, references

_WORDS = re.compile(r"[a-z0-9]+")


@dataclasses.dataclass(frozen=True)
class RougeL(Scorer):
    """F-measure of the longest common subsequence of words, the best over references.

    ROUGE-L of Lin 2004 (Text Summarization Branches Out), section 3, with precision and recall
    weighed alike, on lower-case words of letters and digits: as the package rouge-score, without
    its stemmer.
    """

    # the field with the right answer, or a list of right ones
    reference: str = "completion"
    name: str = ""
    kind: Literal["rouge_l"] = "rouge_l"

    def score(self, answer: str, record: Mapping[str, Any]) -> Scores:
        words = _WORDS.findall(answer.lower())
        texts = references(record, self.reference)
        return Scores({self.label: max(_f1(words, _WORDS.findall(t.lower())) for t in texts)})


def _f1(words: Sequence[str], right: Sequence[str]) -> float:
    if not words or not right:
        return 0.0
    return 2 * _common(words, right) / (len(words) + len(right))


def _common(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    lengths = [0] * (len(second) + 1)
    for word in first:
        diagonal = 0
        for at, other in enumerate(second, start=1):
            above = lengths[at]
            lengths[at] = diagonal + 1 if word == other else max(above, lengths[at - 1])
            diagonal = above
    return lengths[-1]
