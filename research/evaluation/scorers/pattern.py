"""Whether an answer has a form."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, Literal

from research.evaluation.scorers.base import Scorer, Scores, check_pattern


@dataclasses.dataclass(frozen=True)
class Pattern(Scorer):
    """1 where an answer matches a regular expression, white space at its ends aside."""

    pattern: str
    # whether the whole answer must match, or something in it
    whole: bool = True
    name: str = ""
    kind: Literal["pattern"] = "pattern"

    def __post_init__(self) -> None:
        check_pattern(self.pattern, "pattern")

    def score(self, answer: str, record: Mapping[str, Any]) -> Scores:
        find = re.fullmatch if self.whole else re.search
        is_match = find(self.pattern, answer.strip(), re.DOTALL) is not None
        return Scores({self.label: float(is_match)})
