"""What a labelled format is, and the checks that all of them share."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

Record = Mapping[str, Any]

# Who may speak in a conversation, and other names of them.
ROLES = ("system", "developer", "user", "assistant", "tool")
ROLE_SYNONYMS = {"human": "user", "gpt": "assistant", "bot": "assistant", "chatgpt": "assistant"}
# LLaMA-Factory's and ms-swift's: what a tool gave back.
ROLE_SYNONYMS |= {"observation": "tool", "tool_response": "tool"}


@dataclasses.dataclass(frozen=True)
class Format:
    """How records of one format are recognized and read."""

    # Whether a record looks like it.
    matches: Callable[[Record], bool]
    # (record, label words) -> fields to add to it. Raises ValueError: what is wrong with it.
    convert: Callable[[Record, Sequence[str]], dict[str, Any]]
    # Fields that `convert` reads. Others that are no metadata are refused; see `unread`.
    reads: frozenset[str]
    # Those of them that every record has.
    needs: tuple[str, ...]
    # Whether others pass that do not say how a record is trained on: the scores, categories and
    # counts of those who filtered a corpus were never meant for a model.
    takes_any: bool = False
    # Whether what it reads is left under no other name than those that it adds.
    replaces: bool = False

    def read(self, record: Record, label_words: Sequence[str]) -> dict[str, Any]:
        """The fields that the format adds to a record.

        Raises:
            ValueError: it lacks a field, as one of another format does, or a field is wrong.
        """
        for name in self.needs:
            check_field(record, name)
        return self.convert(record, label_words)


def check_field(record: Record, field: str) -> None:
    """Raises ValueError if a record lacks a field."""
    if field not in record:
        raise ValueError(f"there is no field {field!r}, only {sorted(record)}.")


def read_text(record: Record, field: str) -> str:
    """The text of a field.

    Raises:
        ValueError: there is none.
    """
    check_field(record, field)
    return check_text(record[field], f"field {field!r}")


def check_text(value: Any, where: str) -> str:
    """The value, if it is text; ValueError says `where` it is not."""
    if not isinstance(value, str):
        raise ValueError(f"{where} must be text, not {type(value).__name__}.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{where} is no Unicode text: {error}") from None
    return value


def has_value(value: Any) -> bool:
    """Whether a field says something: null and what is empty say that there is nothing."""
    return value is not None and not (isinstance(value, str | list | dict) and not value)


def same_json(one: Any, other: Any) -> bool:
    """Whether two values are the same as JSON, where true is not 1."""

    def as_json(value: Any) -> Any:
        return value.tolist() if isinstance(value, np.ndarray) else repr(value)

    first, second = (json.dumps(value, sort_keys=True, default=as_json) for value in (one, other))
    return first == second


def refuse_fields(fields: Record, reasons: Mapping[str, str], where: str = "") -> None:
    """Raises ValueError for a field that has a value and is not read; `reasons` say what to do."""
    for name, reason in reasons.items():
        if has_value(fields.get(name)):
            place = f"{where} has" if where else "there is"
            raise ValueError(f"{place} {name!r}, which is not supported: {reason}.")
