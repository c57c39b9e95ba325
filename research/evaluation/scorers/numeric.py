"""Whether the number that an answer comes to is right."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal, InvalidOperation
from typing import Any, Literal

from research.config.schema import Share
from research.evaluation.scorers.base import Scorer, Scores, check_pattern, references

# 1,234.5 or 1234.5 or .5, with a sign, a currency and an exponent; not the digits of x2 or v1.2
_NUMBER = re.compile(
    r"(?<![\w.,])(?=[-+\u2212]?\$?\.?\d)[-+\u2212]?\$?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d*)(?:\.\d+)?"
    r"(?:[eE][-+]?\d+)?"
)


@dataclasses.dataclass(frozen=True)
class Numeric(Scorer):
    """1 where the last number of an answer equals that of a reference.

    As in GSM8K (Cobbe 2021, arXiv:2110.14168), whose solutions end in `#### 72`. A currency sign
    before a number, and commas between thousands, are no part of it; a fraction is two numbers.
    """

    # the field with the right answer, or a list of right ones: numbers, or texts that end in one
    reference: str = "completion"
    # regular expression of what the number follows, where it is there, as "####|answer is"; the
    # last match counts
    after: str | None = None
    # relative error that is still right
    tolerance: Share = 0.0
    name: str = ""
    kind: Literal["numeric"] = "numeric"

    def __post_init__(self) -> None:
        check_pattern(self.after or "", "after")

    def score(self, answer: str, record: Mapping[str, Any]) -> Scores:
        right = [self._find(text) for text in references(record, self.reference)]
        if None in right:
            raise ValueError(f"its {self.reference!r} holds no number: {record[self.reference]!r}")
        number = self._find(answer)
        if number is None:
            return Scores({self.label: 0.0}, "there is no number in it")
        is_right = [self._is_close(number, value) for value in right if value is not None]
        return Scores({self.label: float(any(is_right))})

    def reading(self, answer: str) -> str | None:
        number = self._find(answer)
        if not number:
            return None if number is None else "0"  # -0 too
        # every digit, whatever the exponent
        digits = len(number.as_tuple().digits)
        exact = Context(prec=digits, Emin=MIN_EMIN, Emax=MAX_EMAX, traps=[])
        return str(number.normalize(exact))

    def _is_close(self, first: Decimal, second: Decimal) -> bool:
        """Exactly, with no tolerance: numbers may have more digits than a float."""
        if self.tolerance == 0 or first == second:
            return first == second
        a, b = float(first), float(second)
        return math.isfinite(a) and math.isclose(a, b, rel_tol=self.tolerance)

    def _find(self, text: str) -> Decimal | None:
        """The last number behind what it follows, or the first one there; of all, the last."""
        if self.after is not None and (marks := list(re.finditer(self.after, text))):
            match = _NUMBER.search(text, marks[-1].end())
            return None if match is None else _value(match.group())
        matches = _NUMBER.findall(text)
        return _value(matches[-1]) if matches else None


def _value(text: str) -> Decimal:
    plain = text.replace("\u2212", "-").replace("$", "").replace(",", "")
    try:
        return Decimal(plain)
    except InvalidOperation:  # an exponent of twenty digits: equal to nothing
        return Decimal("NaN")
