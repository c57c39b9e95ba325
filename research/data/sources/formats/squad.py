"""Questions about a passage (SQuAD, Rajpurkar 2016; arXiv:1606.05250), as Hugging Face has them."""

from collections.abc import Mapping, Sequence
from typing import Any

from research.data.sources.formats.base import Format, Record, check_text, read_text


def _has_question(record: Record) -> bool:
    answers = record.get("answers")
    listed = isinstance(answers, Mapping) and isinstance(answers.get("text"), list)
    return listed and "context" in record and "question" in record


def _read_question(record: Record, label_words: Sequence[str]) -> dict[str, Any]:
    """The passage and the question; the first answer, which is empty where there is none (2.0)."""
    fields = record["answers"]
    answers = fields.get("text") if isinstance(fields, Mapping) else None
    if not isinstance(answers, list):  # of a text, the first would be a letter
        raise ValueError(
            'field \'answers\' must have a list of answers, such as {"text": ["..."]}, which is '
            f"empty where there is none; it is {fields!r:.40}."
        )
    completion = check_text(answers[0], "answers.text[0]") if answers else ""
    if record.get("is_impossible") and answers:
        raise ValueError(
            "field 'is_impossible' says that there is no answer, and 'answers' has one."
        )
    return {
        "prompt": f"{read_text(record, 'context')}\n\n{read_text(record, 'question')}",
        "completion": completion,
    }


SQUAD = Format(
    _has_question,
    _read_question,
    frozenset({"context", "question", "answers", "is_impossible"}),
    ("context", "question", "answers"),
)
