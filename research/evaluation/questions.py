"""Questions of a labelled split: what a model is asked, and the record that its answer is held
against."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from research.data.sources import SourceConfig, open_source
from research.data.sources.base import RecordsConfig
from research.data.sources.formats import OF_OBJECTIVES
from research.data.sources.formats.unread import METADATA
from research.retrieval.prompts import PromptPassages
from research.text.conversation import WEIGHT, Conversation, from_messages


@dataclasses.dataclass(frozen=True)
class Question:
    """What is asked, and what is known of it."""

    # of its row in the split
    row: int
    # it ends where the model is asked
    conversation: Conversation
    # the record, `completion` the last answer where it is a conversation
    record: Mapping[str, Any]
    # what was retrieved for it; None: nothing is
    passages: PromptPassages | None = None

    @property
    def text(self) -> str:
        """The last message, as a table shows it."""
        return str(self.conversation.messages[-1]["content"])

    @property
    def is_plain(self) -> bool:
        """Whether it is one text of a user, which any model can be asked."""
        source = self.conversation
        message, *others = source.messages
        extra = {key for key, value in message.items() if value} - {"role", "content"}
        is_text = message["role"] == "user" and isinstance(message["content"], str)
        return is_text and not (others or extra or source.tools or source.template_arguments)

    def digest(self, right_answers: Any) -> str:
        """The same for the same question and right answers."""
        source = self.conversation
        arguments = dict(source.template_arguments or {})
        return digest([source.messages, source.tools, arguments, right_answers])


def digest(content: Any) -> str:
    """Sixteen hexadecimal digits of a question as JSON."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def read_questions(
    source: SourceConfig,
    split: str,
    reads: Collection[str],
    max_questions: int | None = None,
    make: Callable[[Mapping[str, Any], int, str], Question] | None = None,
) -> list[Question]:
    """The questions of a split.

    Args:
      source: pairs of prompt and completion, or conversations, whose last answer is the right one.
      split: of the source.
      reads: fields that are read of its records beside those of its format.
      max_questions: how many are drawn at most, by a fixed seed.
      make: what a record asks; None: `question_of`.

    Raises:
      ValueError: there are fewer than two, or a record asks nothing; names the row.
    """
    if isinstance(source, RecordsConfig):
        extra = sorted(set(reads) - OF_OBJECTIVES - METADATA)
        unused = (*source.unused_fields, *map(re.escape, extra))
        source = dataclasses.replace(source, unused_fields=unused)
    data = open_source(source, split)
    if len(data) < 2:
        raise ValueError(f"{data.name} has {len(data)} questions: nothing can be said of so few")
    make = make or question_of
    return [make(data[row], row, data.name) for row in draw_rows(len(data), max_questions)]


def draw_rows(count: int, max_rows: int | None) -> list[int]:
    """At most so many of `count` rows, drawn by a fixed seed, in their order."""
    if max_rows is None or max_rows >= count:
        return list(range(count))
    return sorted(int(i) for i in np.random.default_rng(0).permutation(count)[:max_rows])


def read_groups(questions: Sequence[Question], field: str | None) -> np.ndarray | None:
    """[N] the field of every record; None where none has it, or none is asked for.

    Raises:
      ValueError: only some have it, or all are one group.
    """
    if field is None:
        return None
    having = [field in question.record for question in questions]
    if not any(having):
        return None
    if not all(having):
        row = questions[having.index(False)].row
        raise ValueError(f"row {row} has no field {field!r}, by which others are grouped")
    groups = np.asarray([str(question.record[field]) for question in questions])
    if len(set(groups)) == 1:
        raise ValueError(
            f"all questions have the {field} {str(groups[0])!r}: they are one group, of which no "
            "interval can be told; set the task's `group` to another field, or to None"
        )
    return groups


def read_fields(questions: Sequence[Question], names: Sequence[str]) -> list[dict[str, str]]:
    """[N] the values of some fields of every record, as text.

    Raises:
      ValueError: a record lacks one, or it is no single value; names the row.
    """
    rows = []
    for question in questions:
        values = {name: question.record.get(name) for name in names}
        for name, value in values.items():
            if not isinstance(value, str | int | float):
                raise ValueError(
                    f"row {question.row}: results are broken down by {name!r}, which is no text or "
                    f"number there, but {value!r:.60}; fields: {', '.join(sorted(question.record))}"
                )
        rows.append({name: str(value) for name, value in values.items()})
    return rows


def question_of(record: Mapping[str, Any], row: int, name: str) -> Question:
    """What a record asks.

    Raises:
      ValueError: it asks nothing, or its last answer is no text; names the row.
    """
    messages = record.get("messages")
    arguments = (record.get("tools") or (), record.get("template_arguments"))
    if isinstance(messages, list):
        *before, last = messages
        if last["role"] == "assistant" and before:
            known = {**record, "completion": _right_answer(last, row, name)}
            if isinstance(record.get("completion"), str):  # one of its own beside the messages
                known["completion"] = record["completion"]
            return Question(row, from_messages(before, *arguments), known)
        return Question(row, from_messages(messages, *arguments), record)
    if not isinstance(record.get("prompt"), str):
        raise ValueError(
            f"{name}, row {row}: there is no question: neither 'prompt' nor 'messages', only "
            f"{sorted(record)}; name them in the source's `fields`"
        )
    message = {"role": "user", "content": record["prompt"]}
    return Question(row, from_messages([message], *arguments), record)


def _right_answer(message: Mapping[str, Any], row: int, name: str) -> str:
    """What an assistant's message says.

    Raises:
      ValueError: it says nothing, calls tools, which no scorer compares, or is not to be learnt.
    """
    if message.get(WEIGHT, 1) == 0:
        raise ValueError(
            f"{name}, row {row}: the last answer has weight 0, so that it is none to compare with: "
            "drop such records with a transform"
        )
    if message.get("tool_calls"):
        raise ValueError(
            f"{name}, row {row}: the last answer calls tools, which no scorer reads: drop such "
            "records with a transform"
        )
    content = message.get("content")
    if not isinstance(content, str) or not content:
        raise ValueError(f"{name}, row {row}: the last answer is no text, but {content!r:.60}")
    return content
