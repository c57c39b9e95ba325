"""Conversations: `messages` as OpenAI has them, ShareGPT's `conversations`, and prompt and
completion as lists of messages (TRL's conversational prompt-completion).

What a message says beside its text is kept for the chat template (calls of tools, thoughts, names,
any field of its own), or it is a weight in training, under the names that other trainers use. What
would change the training and is neither is refused by name.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from research.data.sources.formats.base import (
    ROLE_SYNONYMS,
    ROLES,
    Format,
    Record,
    check_text,
    refuse_fields,
    same_json,
)
from research.data.sources.formats.tool_calls import check_results, read_call_turn, read_calls
from research.data.sources.formats.unread import WEIGHTS
from research.runtime import unique_json
from research.text.conversation import REASONING, WEIGHT

# LLaMA-Factory's and ms-swift's: calls of a tool, as JSON in the text.
_CALLS = ("function_call", "tool_call")
# What a message may hold that no template reads as it is meant.
_UNREAD = {
    "function_call": "write it as tool_calls",
    "train_detail": "weights are of whole messages: use train or weight",
    "images": "it is no text",
    "audio": "it is no text",
    "video": "it is no text",
}
_PART_REASON = "weights are of whole messages, and templates read the text alone"
_ARGUMENTS = ("template_arguments", "chat_template_kwargs")
# What a record may have beside its messages.
BESIDE = {"system", "tools", "documents", *_ARGUMENTS}


def _has_messages(record: Record) -> bool:
    return isinstance(record.get("messages"), list | dict)


def _read_messages(record: Record, label_words: Sequence[str]) -> dict[str, Any]:
    messages = [*_system(record), *list_turns(record["messages"], "messages")]
    return _read_record(record, _conversation(messages, "messages"))


def _has_conversations(record: Record) -> bool:
    return isinstance(record.get("conversations"), list | dict)


def _read_sharegpt(record: Record, label_words: Sequence[str]) -> dict[str, Any]:
    turns = [*_system(record), *list_turns(record["conversations"], "conversations")]
    return _read_record(record, _conversation(turns, "conversations"))


def _has_message_pair(record: Record) -> bool:
    return all(isinstance(record.get(name), list | dict) for name in ("prompt", "completion"))


def _read_message_pair(record: Record, label_words: Sequence[str]) -> dict[str, Any]:
    """One conversation of both fields."""
    prompt, completion = (list_turns(record[name], name) for name in ("prompt", "completion"))
    return read_pair_of_messages(record, prompt, completion, "prompt and completion")


def read_pair_of_messages(
    record: Record, prompt: Sequence[Any], completion: Sequence[Any], field: str
) -> dict[str, Any]:
    """One conversation in which the assistant's messages of the prompt have weight 0.

    Args:
      record: what may have a system's message, tools and template arguments beside them.
      prompt: messages that are read.
      completion: messages that are trained on.
      field: names them in errors.
    """
    before = [
        _without_weight(turn, f"prompt[{number}]") if isinstance(turn, Mapping) else turn
        for number, turn in enumerate(prompt)
    ]
    turns = [*_system(record), *before, *completion]
    return _read_record(record, _conversation(turns, field))


def _without_weight(turn: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A message of the prompt, with weight 0; ValueError where it asks to be trained on."""
    for name in WEIGHTS:
        if turn.get(name) is not None and _read_number(turn[name], name, where):
            raise ValueError(
                f"{where}: {name!r} asks to train on a message of the prompt; only the completion "
                "is trained on: write both as messages."
            )
    return {name: value for name, value in turn.items() if name not in WEIGHTS} | {WEIGHT: 0}


def _system(record: Record) -> list[dict[str, Any]]:
    """The system's message, where a record has it in a field of its own."""
    return [{"role": "system", "content": record["system"]}] if record.get("system") else []


def list_turns(turns: Any, field: str) -> list[Any]:
    if isinstance(turns, Mapping) and isinstance(turns.get("role", turns.get("from")), str):
        turns = [turns]
    if isinstance(turns, Mapping):  # TFDS gives a list of dicts as a dict of lists.
        # zip would take letters of a text
        sizes = {len(v) if isinstance(v, list | np.ndarray) else None for v in turns.values()}
        if None in sizes or len(sizes) != 1:
            raise ValueError(
                f"field {field!r} must be a list of messages, a message, or columns of one length "
                f"each; {', '.join(map(repr, turns))} are none."
            )
        columns = zip(*turns.values(), strict=True)
        turns = [dict(zip(turns, values, strict=True)) for values in columns]
    if not isinstance(turns, list):
        raise ValueError(f"field {field!r} must be a list of messages.")
    return turns


def _read_record(record: Record, messages: list[dict[str, Any]]) -> dict[str, Any]:
    """Messages, `tools` and `template_arguments` of a record; ValueError: a field is no JSON."""
    converted: dict[str, Any] = {"messages": messages}
    tools = _read_json(record, "tools", list) or []
    for number, tool in enumerate(tools):
        if not isinstance(tool, Mapping):
            raise ValueError(f"tools[{number}] must be a JSON schema, not {tool!r:.40}.")
    if "tools" in record:  # also where its text is that of an empty list
        converted["tools"] = tools
    arguments = _read_arguments(record)
    if arguments or "template_arguments" in record:
        converted["template_arguments"] = arguments
    return converted


def _read_arguments(record: Record) -> dict[str, Any]:
    """Variables of the template; ValueError: fields say different things of them."""
    by_name: dict[str, dict[str, Any]] = {}
    for name in _ARGUMENTS:  # null is what a column has where a record has none
        items = (_read_json(record, name, dict) or {}).items()
        if arguments := {key: value for key, value in items if value is not None}:
            by_name[name] = arguments
    arguments, *others = by_name.values() or [{}]
    if any(not same_json(arguments, other) for other in others):
        raise ValueError(f"{' and '.join(by_name)} differ: keep one of them.")
    documents = _read_json(record, "documents", list) if record.get("documents") else None
    if documents:
        if not same_json(arguments.get("documents", documents), documents):
            raise ValueError(f"'documents' and those of {next(iter(by_name))} differ: keep one.")
        arguments = arguments | {"documents": documents}
    return arguments


def _read_json(record: Record, name: str, kind: type) -> Any:
    """A field that holds JSON, or its text; None where there is none."""
    value = record.get(name)
    if isinstance(value, str):
        try:
            value = unique_json.parse(value)
        except ValueError as error:
            raise ValueError(f"field {name!r} is no JSON: {error}.") from None
    if value is not None and not isinstance(value, kind):
        raise ValueError(f"field {name!r} must be a {kind.__name__}, not {type(value).__name__}.")
    return value


def _conversation(turns: Sequence[Any], field: str) -> list[dict[str, Any]]:
    """Checked messages.

    Raises:
        ValueError: no list of messages with a known role and a text, or nothing in it to train on.
    """
    messages = [_read_message(turn, f"{field}[{number}]") for number, turn in enumerate(turns)]
    roles = [message["role"] for message in messages if message["role"] not in ROLES[:2]]
    if "assistant" not in roles:
        raise ValueError(f"field {field!r}: the assistant says nothing, so nothing can be trained.")
    if roles[0] == "assistant":
        raise ValueError(f"field {field!r}: the assistant speaks before it is asked.")
    check_results(messages)
    return messages


def _read_message(turn: Any, where: str) -> dict[str, Any]:
    if not isinstance(turn, Mapping):
        raise ValueError(f"{where} must be a message, not {type(turn).__name__}.")
    # Some files have every field in every message; null says that there is none, as in OpenAI's.
    turn = {name: value for name, value in turn.items() if value is not None}
    role = turn.pop("role", None) or turn.pop("from", None)
    if role in _CALLS:
        role, turn = "assistant", read_call_turn(turn, where)
    role = ROLE_SYNONYMS.get(role, role) if isinstance(role, str) else role
    if role not in ROLES:
        known = ", ".join((*ROLES, *ROLE_SYNONYMS, *_CALLS))
        raise ValueError(f"{where} has the unknown role {role!r}. Known: {known}.")
    refuse_fields(turn, _UNREAD, where)
    weight = _read_weight(turn, role, where)
    content = turn.pop("content", None)
    if content is None:
        content = turn.pop("value", None)
    extra = {name: value for name, value in turn.items() if name not in WEIGHTS}
    thoughts = _read_reasoning(extra, role, where)
    others = {name: value for name, value in extra.items() if name not in REASONING}
    extra = read_calls(others, role, where) | thoughts
    says_more = "tool_calls" in extra or REASONING[0] in extra
    content = "" if content is None and says_more else _read_content(content, where)
    if role == "assistant" and not content.strip() and not says_more:
        raise ValueError(f"{where}: the assistant says nothing.")
    message = {"role": role, "content": content, **extra}
    return message if weight == 1 else message | {WEIGHT: weight}


def _read_content(content: Any, where: str) -> str:
    """The text of a message; parts that are all text are joined."""
    if not isinstance(content, list):
        return check_text(content, where)
    parts = [part if isinstance(part, Mapping) else {} for part in content]
    if any(part.get("type") != "text" for part in parts):
        raise ValueError(f"{where} has content that is no text, which is not supported.")
    for part in parts:
        extra = {name: part[name] for name in part if name not in ("type", "text")}
        refuse_fields(extra, dict.fromkeys(extra, _PART_REASON), f"{where}: a part of the content")
    return "".join(check_text(part.get("text"), where) for part in parts)


def _read_weight(turn: Mapping[str, Any], role: str, where: str) -> float:
    """How much a message counts; 1 where it does not say."""
    weight = 1.0
    for name in WEIGHTS:
        value = _read_number(turn.get(name, 1), name, where)
        if role != "assistant" and name in turn and value:
            raise ValueError(
                f"{where}: {name!r} asks to train on a message of role {role!r}; only the "
                "assistant's are."
            )
        weight *= value
    return weight if role == "assistant" else 1.0


def _read_number(value: Any, name: str, where: str) -> float:
    if not isinstance(value, bool | int | float) or not 0 <= value < math.inf:
        raise ValueError(f"{where}: {name!r} must be true, false or a weight, not {value!r}.")
    return float(value)


def _read_reasoning(extra: Mapping[str, Any], role: str, where: str) -> dict[str, Any]:
    """What the assistant thinks, under every name that templates read (as transformers has it)."""
    thoughts = {name: extra[name] for name in REASONING if extra.get(name, "") != ""}
    if not thoughts:
        return {}
    name, text = next(iter(thoughts.items()))
    check_text(text, f"{where}: {name!r}")
    if any(other != text for other in thoughts.values()):
        raise ValueError(f"{where}: {' and '.join(thoughts)} differ: keep one of them.")
    if role != "assistant":
        raise ValueError(f"{where}: a message of role {role!r} has {name!r}.")
    return dict.fromkeys((*REASONING[:2], name), text)


MESSAGES = Format(_has_messages, _read_messages, frozenset({"messages", *BESIDE}), ("messages",))
SHAREGPT = Format(
    _has_conversations,
    _read_sharegpt,
    frozenset({"conversations", *BESIDE}),
    ("conversations",),
)
MESSAGE_PAIR = Format(
    _has_message_pair,
    _read_message_pair,
    frozenset({"prompt", "completion", *BESIDE}),
    ("prompt", "completion"),
)
