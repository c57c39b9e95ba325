"""Questions with what was retrieved for them: the passages that are put into their prompts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from research.config.suggestions import suggestion
from research.evaluation.questions import Question
from research.retrieval.base import RetrievalConfig
from research.retrieval.retrieve import Query, retrieve
from research.text.conversation import Conversation
from research.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A question as a model reads it."""

    ids: list[int]
    # whether the question was cut
    is_cut: bool
    # ids of the passages in it, best first; None: nothing is retrieved
    passages: list[str] | None = None
    # how well the right documents were found, where they are known
    scores: Mapping[str, float] = dataclasses.field(default_factory=dict)


# A conversation's token ids, and whether it was cut.
Write = Callable[[Conversation], tuple[list[int], bool]]


def add_passages(
    config: RetrievalConfig | None,
    right_answers: Callable[[Mapping[str, Any]], Sequence[str]],
    questions: Sequence[Question],
    tokenizer: Tokenizer,
) -> list[Question]:
    """The questions with the passages of each; as they are where nothing is retrieved.

    Args:
      config: what is retrieved; None: nothing.
      right_answers: those of a record, where they are known.
      questions: of one task.
      tokenizer: of the model that is asked.

    Raises:
      ValueError: a record lacks a field, or as `retrieve` does.
    """
    if config is None:
        return list(questions)
    queries = [_query(config, right_answers(question.record), question) for question in questions]
    pairs = zip(questions, retrieve(config, queries, tokenizer), strict=True)
    return [dataclasses.replace(question, passages=each) for question, each in pairs]


def write_prompt(question: Question, write: Write) -> Prompt:
    """A question as a model reads it, with as many of its passages as have room.

    A question is not cut for a passage: those that have no room are left out, the worst first.

    Raises:
      ValueError: as `write` does for the question alone.
    """
    passages = question.passages
    if passages is None:
        return Prompt(*write(question.conversation))
    for count in range(len(passages.texts), 0, -1):
        try:
            ids, is_cut = write(passages.add_to(question.conversation, count))
        except ValueError:  # it does not fit, or the question cannot be asked at all
            continue
        if not is_cut:
            return Prompt(ids, False, list(passages.ids[:count]), passages.measure(count))
    return Prompt(*write(question.conversation), [], passages.measure(0))


def _query(config: RetrievalConfig, answers: Sequence[str], question: Question) -> Query:
    record, row = question.record, question.row
    text = question.text
    if config.query is not None:
        value = _field(record, config.query, "query", row)
        if not isinstance(value, str):
            raise ValueError(f"row {row}: retrieval.query is {config.query!r}, which is no text")
        text = value
    right: frozenset[str] = frozenset()
    if config.relevant is not None:
        value = _field(record, config.relevant, "relevant", row)
        values = value if isinstance(value, list | tuple) else [value]
        if not values or not all(isinstance(each, str | int) for each in values):
            raise ValueError(
                f"row {row}: retrieval.relevant is {config.relevant!r}, which must be an id or a "
                f"list of them, not {value!r:.40}"
            )
        right = frozenset(map(str, values))
    return Query(text, question.text, tuple(answers), row, right)


def _field(record: Mapping[str, Any], name: str, setting: str, row: int) -> Any:
    if name not in record:
        raise ValueError(
            f"row {row} has no field {name!r}, which retrieval.{setting} names"
            f"{suggestion(name, record)}"
        )
    return record[name]
