"""Labelled formats: which one records have, and what objectives read of them.

A format adds to a record `prompt` and `completion`, or `messages`: a conversation as a list of
`{"role": ..., "content": ...}` with the roles of `ROLES`. The first format in `FORMATS` that a
record looks like is its format; a new one is one line there.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]

# Who may speak in a conversation, and other names of them.
ROLES = ("system", "developer", "user", "assistant", "tool")
_SYNONYMS = {"human": "user", "gpt": "assistant", "bot": "assistant", "chatgpt": "assistant"}
# What a message may say beside its text that would be lost or trained on against its meaning.
_UNREAD = ("tool_calls", "function_call", "weight")


@dataclasses.dataclass(frozen=True)
class Format:
    """How records of one format are told and read."""

    # Whether a record looks like it.
    matches: Callable[[Record], bool]
    # (record, label words) -> fields to add to it. Raises ValueError: what is wrong with it.
    convert: Callable[[Record, Sequence[str]], dict[str, Any]]


def name_format(record: Record) -> str:
    """The name of the first format that the record looks like."""
    return next(name for name, form in FORMATS.items() if form.matches(record))


def _text(record: Record, field: str) -> str:
    if field not in record:
        raise ValueError(f"there is no field {field!r}, only {sorted(record)}.")
    return _checked(record[field], f"field {field!r}")


def _checked(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{where} must be text, not {type(value).__name__}.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{where} is no Unicode text: {error}") from None
    return value


def _read_messages(record: Record, words: Sequence[str]) -> dict[str, Any]:
    return {"messages": _conversation(record["messages"], "messages")}


def _read_sharegpt(record: Record, words: Sequence[str]) -> dict[str, Any]:
    turns = record["conversations"]
    if record.get("system"):
        first = {"from": "system", "value": record["system"]}
        turns = [first, *turns] if isinstance(turns, list) else turns
    return {"messages": _conversation(turns, "conversations")}


def _conversation(turns: Any, field: str) -> list[dict[str, str]]:
    """Checked messages.

    Raises:
        ValueError: no list of messages with a known role and a text, or nothing in it to train on.
    """
    if isinstance(turns, Mapping):  # TFDS gives a list of dicts as a dict of lists.
        names = list(turns)
        turns = [dict(zip(names, turn, strict=True)) for turn in zip(*turns.values(), strict=True)]
    if not isinstance(turns, list):
        raise ValueError(f"field {field!r} must be a list of messages.")
    said: list[dict[str, str]] = []
    for number, turn in enumerate(turns):
        where = f"{field}[{number}]"
        if not isinstance(turn, Mapping):
            raise ValueError(f"{where} must be a message, not {type(turn).__name__}.")
        role = turn.get("role", turn.get("from"))
        role = _SYNONYMS.get(role, role) if isinstance(role, str) else role
        if role not in ROLES:
            known = ", ".join((*ROLES, *_SYNONYMS))
            raise ValueError(f"{where} has the unknown role {role!r}. Known: {known}.")
        for name in _UNREAD:
            if turn.get(name) is not None:
                raise ValueError(f"{where} has {name!r}, which is not supported: remove it.")
        content = turn.get("content", turn.get("value"))
        if isinstance(content, list):
            parts = [part if isinstance(part, Mapping) else {} for part in content]
            if any(part.get("type") != "text" for part in parts):
                raise ValueError(f"{where} has content that is no text, which is not supported.")
            content = "".join(_checked(part.get("text"), where) for part in parts)
        content = _checked(content, where)
        if role == "assistant" and not content.strip():
            raise ValueError(f"{where}: the assistant says nothing.")
        said.append({"role": role, "content": content})
    asked = [message["role"] for message in said if message["role"] not in ROLES[:2]]
    if "assistant" not in asked:
        raise ValueError(f"field {field!r}: the assistant says nothing, so nothing can be trained.")
    if asked[0] == "assistant":
        raise ValueError(f"field {field!r}: the assistant speaks before it is asked.")
    return said


def _read_pair(record: Record, words: Sequence[str]) -> dict[str, Any]:
    return {name: _text(record, name) for name in ("prompt", "completion")}


def _read_alpaca(record: Record, words: Sequence[str]) -> dict[str, Any]:
    for name in ("system", "history"):
        if record.get(name):
            raise ValueError(f"field {name!r} is not part of the format: write it as messages.")
    parts = [_text(record, "instruction")]
    if record.get("input") is not None:
        parts.append(_text(record, "input"))
    prompt = "\n\n".join(part for part in parts if part)
    return {"prompt": prompt, "completion": _text(record, "output")}


def _read_classification(record: Record, words: Sequence[str]) -> dict[str, Any]:
    label, text = record.get("label"), _text(record, "text")
    if isinstance(label, str):
        if words and label not in words:
            raise ValueError(f"label {label!r} is none of label_words ({', '.join(words)}).")
        return {"prompt": text, "completion": _checked(label, "field 'label'")}
    if type(label) is not int:
        raise ValueError(f"field 'label' must be a number or text, not {type(label).__name__}.")
    if not words:  # It can still be read as text.
        return {}
    if not 0 <= label < len(words):
        raise ValueError(f"label {label} has no word: label_words has {len(words)}, from 0.")
    return {"prompt": text, "completion": words[label]}


FORMATS: dict[str, Format] = {
    "messages": Format(lambda r: isinstance(r.get("messages"), list | dict), _read_messages),
    "sharegpt": Format(lambda r: isinstance(r.get("conversations"), list | dict), _read_sharegpt),
    "prompt+completion": Format(lambda r: "prompt" in r and "completion" in r, _read_pair),
    "alpaca": Format(lambda r: "instruction" in r and "output" in r, _read_alpaca),
    "classification": Format(
        lambda r: "text" in r and type(r.get("label")) in (int, str), _read_classification
    ),
    "text": Format(lambda r: "text" in r, lambda r, _: {"text": _text(r, "text")}),
    "other": Format(lambda r: True, lambda r, _: {}),
}
