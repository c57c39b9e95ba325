"""What a study works out of its results, beside its verdicts: a function in a file of its own.

    answers="experiments/NAME/answers.py:work_out"

It takes what every trial measured, a mapping each (its columns and `stage`, `form`, `seed` and the
keys of the axes), and gives `Answer`s, which the page of a finished study shows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from research.config.functions import call_function
from research.reports.tables import Column


@dataclasses.dataclass(frozen=True)
class Answer:
    """A section of a page: a heading, a paragraph, and a table.

    Attributes:
      columns: of `lines`, in order; None: all keys under their own names.
    """

    heading: str
    text: str
    lines: Sequence[Mapping[str, Any]] = ()
    columns: Sequence[Column] | None = None


def work_out(name: str, trials: Sequence[Mapping[str, Any]]) -> list[Answer]:
    """What a function says of the trials.

    Raises:
      ValueError: there is no such function, it fails, or gives something else.
    """
    answers = call_function(name, "answers", trials)
    if not isinstance(answers, list) or not all(isinstance(each, Answer) for each in answers):
        raise ValueError(f"{name} must return a list of Answer")
    return answers
