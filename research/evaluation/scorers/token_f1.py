"""How many words an answer shares with the right one."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from research.evaluation.scorers.base import Scorer, Scores, as_in_squad, references


@dataclasses.dataclass(frozen=True)
class TokenF1(Scorer):
    """Harmonic mean of precision and recall of words, the best over references.

    As SQuAD's own script (Rajpurkar 2016, arXiv:1606.05250, section 6.1): words in lower case,
    without punctuation and articles, as often as they appear. Where one of the two has no word,
    1 if both have none.
    """

    # the field with the right answer, or a list of right ones
    reference: str = "completion"
    name: str = ""
    kind: Literal["token_f1"] = "token_f1"

    def score(self, answer: str, record: Mapping[str, Any]) -> Scores:
        words = as_in_squad(answer).split()
        texts = references(record, self.reference)
        return Scores({self.label: max(_f1(words, as_in_squad(t).split()) for t in texts)})


def _f1(words: list[str], right: list[str]) -> float:
    if not words or not right:
        return float(words == right)
    common = sum((collections.Counter(words) & collections.Counter(right)).values())
    return 2 * common / (len(words) + len(right))
