"""Which metric of a task decides, and what it gives a text that no model wrote."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from research.config.suggestions import suggestion
from research.evaluation.generation_task import GenerationTask
from research.evaluation.multiple_choice import MultipleChoice
from research.evaluation.question_task import QuestionTask

# The first of these that a task has decides, unless --metric names one.
_PREFERENCE = (
    r"right",
    r"[^/]+/all",
    r"ifeval/prompt_strict",
    r"json/fields",
    r"exact_match",
    r"numeric",
    r"code",
    r"token_f1",
    r"rouge_l",
)


def choose_metric(names: Sequence[str], wish: str | None = None) -> str:
    """The metric that decides.

    Raises:
      ValueError: the one that is wished for is none of them; names the nearest.
    """
    if wish is not None:
        if wish not in names:
            raise ValueError(
                f"--metric {wish}: the task has {', '.join(names)}{suggestion(wish, names)}"
            )
        return wish
    for pattern in _PREFERENCE:
        for name in names:
            if re.fullmatch(pattern, name):
                return name
    return names[0]


def score_text(task: QuestionTask, record: Any, text: str, metric: str) -> float:
    """What a text is worth as the answer to a record's question; 0 where it is not measured."""
    if isinstance(task, MultipleChoice):
        options, right = task.read_options(record)
        return float(text == options[right])
    assert isinstance(task, GenerationTask)
    for scorer in task.scorers:
        values = scorer.score(text, record).values
        if metric in values:
            return float(values[metric])
    return 0.0
