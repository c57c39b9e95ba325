"""Calls of tools and their results in a record: checked, so that each result answers a call."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from research.runtime import unique_json

# A call that an answer spells in its text, as Hermes' records do: results may follow it.
_SPELLED_CALL = re.compile(r'tool_call|function|"name"', re.IGNORECASE)


def read_call_turn(turn: dict[str, Any], where: str) -> dict[str, Any]:
    """A message whose text is a call of a tool, or several, as one with `tool_calls`."""
    text = turn.get("content", turn.get("value"))
    try:
        calls = unique_json.parse(text) if isinstance(text, str) else text
    except ValueError as error:
        raise ValueError(f"{where} must be a call of a tool as JSON: {error}.") from None
    calls = calls if isinstance(calls, list) else [calls]
    if not all(isinstance(call, Mapping) and {"name", "arguments"} <= set(call) for call in calls):
        raise ValueError(f"{where} must be a call of a tool, with a name and arguments.")
    functions = [{"type": "function", "function": dict(call)} for call in calls]
    others = {name: value for name, value in turn.items() if name not in ("content", "value")}
    return {**others, "tool_calls": functions}


def read_calls(extra: Mapping[str, Any], role: str, where: str) -> dict[str, Any]:
    """The fields of a message with its calls of tools checked; an empty list is none.

    Raises:
        ValueError: a call without a name or arguments, of another kind than functions, with
          arguments that are no JSON object, or of another role than the assistant.
    """
    calls = extra.get("tool_calls", [])
    if not isinstance(calls, list) or not all(
        isinstance(call, Mapping) and isinstance(call.get("function", {}), Mapping)
        for call in calls
    ):
        raise ValueError(f"{where}: 'tool_calls' must be a list of calls.")
    if calls and role != "assistant":
        raise ValueError(f"{where}: a message of role {role!r} has 'tool_calls'.")
    for number, call in enumerate(calls):
        _check_call(call, f"{where}: tool_calls[{number}]")
    return {name: value for name, value in extra.items() if name != "tool_calls" or calls}


def _check_call(call: Mapping[str, Any], where: str) -> None:
    kind = call.get("type", "function")
    if kind not in ("function", None):
        raise ValueError(
            f"{where} is of type {kind!r}, which no template writes: give it as a function with "
            "a name and arguments."
        )
    function = call.get("function", call)
    name = function.get("name")
    if not isinstance(name, str) or not name:
        raise ValueError(f"{where} has no name of a function, only {sorted(function)}.")
    arguments = function.get("arguments")
    if arguments is None:
        raise ValueError(
            f"{where}: the call of {name!r} has no 'arguments': write {{}} where there are none."
        )
    if isinstance(arguments, str):
        try:
            arguments = unique_json.parse(arguments)
        except ValueError as error:
            raise ValueError(
                f"{where}: the arguments of {name!r} are no JSON: {error}. Mend them, or give "
                "them as an object."
            ) from None
    if not isinstance(arguments, Mapping):
        raise ValueError(
            f"{where}: the arguments of {name!r} must be an object, not {type(arguments).__name__}."
        )


def check_results(messages: Sequence[Mapping[str, Any]]) -> None:
    """Raises ValueError for a result of a tool that no call before it asks for."""
    waiting: list[Any] | None = []  # ids of calls that no result has answered; None: not known
    for number, message in enumerate(messages):
        if message["role"] == "assistant":
            if message.get("tool_calls"):
                waiting = [call.get("id") for call in message["tool_calls"]]
            elif _SPELLED_CALL.search(message["content"]):
                waiting = None
        elif message["role"] == "tool" and waiting is not None:
            waiting = _answer(waiting, message, number)


def _answer(waiting: list[Any], message: Mapping[str, Any], number: int) -> list[Any]:
    """The calls that still wait after a result."""
    name, call_id = message.get("name"), message.get("tool_call_id")
    what = f"message {number} is the result of a tool" + (f" ({name!r})" if name else "")
    if not waiting:
        raise ValueError(
            f"{what}, and no call waits for one: write the call as tool_calls of the answer "
            "before it, or remove it."
        )
    known = [each for each in waiting if each]
    if not call_id or not known:
        return waiting[1:]
    if call_id not in known:
        raise ValueError(
            f"{what} with the tool_call_id {call_id!r}, which no call that waits has: they are "
            f"{', '.join(map(repr, known))}."
        )
    place = waiting.index(call_id)
    return waiting[:place] + waiting[place + 1 :]
