"""Whether an answer is the right one."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, Literal

from research.evaluation.scorers.base import (
    Scorer,
    Scores,
    as_in_squad,
    check_pattern,
    references,
)

Comparison = Literal["exact", "case", "squad"]


@dataclasses.dataclass(frozen=True)
class ExactMatch(Scorer):
    """1 where an answer is one of the references.

    White space at the ends never counts.
    """

    # the field with the right answer, or a list of right ones
    reference: str = "completion"
    # what counts: every character; all but case and kinds of space; or as SQuAD's script: nor
    # punctuation and articles
    comparison: Comparison = "case"
    # regular expression that finds the answer in what is said: its first group, the last time that
    # it matches; None: all that is said. References stay whole
    extract: str | None = None
    name: str = ""
    kind: Literal["exact_match"] = "exact_match"

    def __post_init__(self) -> None:
        if self.extract is not None and check_pattern(self.extract, "extract").groups != 1:
            raise ValueError(
                f"extract: {self.extract!r} needs one group, which is the answer, as in "
                r"'answer is (\w+)'"
            )

    def score(self, answer: str, record: Mapping[str, Any]) -> Scores:
        right = {self._normalize(text) for text in references(record, self.reference)}
        text = self.reading(answer)
        if text is None:
            return Scores({self.label: 0.0}, f"nothing in it matches {self.extract}")
        return Scores({self.label: float(text in right)})

    def reading(self, answer: str) -> str | None:
        if self.extract is not None:
            matches = re.findall(self.extract, answer)
            if not matches:
                return None
            answer = matches[-1]
        return self._normalize(answer)

    def _normalize(self, text: str) -> str:
        if self.comparison == "squad":
            return as_in_squad(text)
        return " ".join(text.casefold().split()) if self.comparison == "case" else text.strip()
