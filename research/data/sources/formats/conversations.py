"""Conversations: `messages` as OpenAI has them, and ShareGPT's `conversations`."""

from collections.abc import Mapping, Sequence
from typing import Any

from research.data.sources.formats.base import Format, Record, check_text

# Who may speak in a conversation, and other names of them.
ROLES = ("system", "developer", "user", "assistant", "tool")
_SYNONYMS = {"human": "user", "gpt": "assistant", "bot": "assistant", "chatgpt": "assistant"}
# What a message may hold beside its text that would be lost or trained on against its meaning.
_UNREAD = ("tool_calls", "function_call", "weight")


def _has_messages(record: Record) -> bool:
    return isinstance(record.get("messages"), list | dict)


def _read_messages(record: Record, label_words: Sequence[str]) -> dict[str, Any]:
    return {"messages": _conversation(record["messages"], "messages")}


def _has_conversations(record: Record) -> bool:
    return isinstance(record.get("conversations"), list | dict)


def _read_sharegpt(record: Record, label_words: Sequence[str]) -> dict[str, Any]:
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
    messages: list[dict[str, str]] = []
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
            content = "".join(check_text(part.get("text"), where) for part in parts)
        content = check_text(content, where)
        if role == "assistant" and not content.strip():
            raise ValueError(f"{where}: the assistant says nothing.")
        messages.append({"role": role, "content": content})
    roles = [message["role"] for message in messages if message["role"] not in ROLES[:2]]
    if "assistant" not in roles:
        raise ValueError(f"field {field!r}: the assistant says nothing, so nothing can be trained.")
    if roles[0] == "assistant":
        raise ValueError(f"field {field!r}: the assistant speaks before it is asked.")
    return messages


MESSAGES = Format(_has_messages, _read_messages)
SHAREGPT = Format(_has_conversations, _read_sharegpt)
