"""What scores an answer: the protocol, and how references are read."""

from __future__ import annotations

import dataclasses
import re
import string
from collections.abc import Mapping
from typing import Any

from research.config.schema import to_dict
from research.text.thoughts import ThoughtMarks

# Articles that the answers of SQuAD are compared without (Rajpurkar 2016, arXiv:1606.05250).
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclasses.dataclass(frozen=True)
class Scores:
    """Scores of one answer."""

    # metric -> number, the higher the better
    values: Mapping[str, float]
    # why nothing could be read in the answer, whose values are then the lowest; empty: it could
    unreadable: str = ""
    # what else is to be said of the answer, such as how a program went wrong
    remark: str = ""
    # metric -> of how many things its number is the mean, each of which counts alike; 1 unless set
    weights: Mapping[str, int] = dataclasses.field(default_factory=dict)
    # what -> how much of it is not in the scores, since it could not be looked at
    unscored: Mapping[str, int] = dataclasses.field(default_factory=dict)


class Scorer:
    """Scores answers; each is a frozen dataclass with a `kind: Literal[...]` of its own.

    A scorer keeps nothing between answers: any order and any machine gives the same numbers.
    """

    # Its name in the registry and in configs.
    kind: str
    # What its metrics are called; empty: as its kind.
    name: str
    # The field with the right answer, or a list of right ones; None: it needs none.
    reference: str | None = None
    # The environment on top of .venv that it needs (`tools/setup LAYER`); empty: none.
    layer: str = ""

    @property
    def label(self) -> str:
        """What its metrics are called, or begin with."""
        return self.name or self.kind

    @property
    def reads(self) -> frozenset[str]:
        """Fields of a record that it reads."""
        return frozenset() if self.reference is None else frozenset({self.reference})

    @property
    def key(self) -> Any:
        """What its scores depend on, as JSON."""
        return to_dict(self)

    def reading(self, answer: str) -> str | None:
        """What it reads in an answer, which samples of one question agree on where it is the same;
        None where it is nothing."""
        return answer.strip()

    # Whether it runs a program, which may come to another end in another process.
    runs_code = False

    @property
    def machine_key(self) -> Any:
        """What of this machine its scores depend on, as JSON: what is installed beside Graft."""
        return None

    def check(self, record: Mapping[str, Any]) -> None:
        """Raises ValueError, as `score` would, for a record whose answers could not be scored."""
        self.score("", record)

    def score(self, answer: str, record: Mapping[str, Any]) -> Scores:
        """Scores an answer to a record's question.

        Raises:
            ValueError: the record has no reference that it could be compared with.
        """
        raise NotImplementedError


def check_pattern(pattern: str, setting: str) -> re.Pattern[str]:
    """A regular expression of a setting; ValueError where it is none."""
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{setting}: no regular expression: {error}") from None


def references(record: Mapping[str, Any], field: str) -> list[str]:
    """The right answers that a record gives: a text, a number, or a list of them; without thoughts,
    as answers are scored.

    Raises:
        ValueError: there are none.
    """
    value = record.get(field)
    values = value if isinstance(value, list | tuple) else [value]
    if not values or not all(isinstance(v, str | int | float) for v in values):
        raise ValueError(
            f"its {field!r} is no right answer (a text, or a list of texts), but "
            f"{value!r:.60}; fields: {', '.join(sorted(record))}"
        )
    marks = ThoughtMarks()
    return [marks.without_thoughts(v) if isinstance(v, str) else str(v) for v in values]


def as_in_squad(text: str) -> str:
    """Lower case, without punctuation and articles, single spaces: as SQuAD's own script."""
    text = _ARTICLES.sub(" ", text.lower().translate(_WITHOUT_PUNCTUATION))
    return " ".join(text.split())
