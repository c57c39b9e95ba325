"""What a conversation says and a chat template leaves out: refused by name, never lost."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from research.text import leaves
from research.text.conversation import REASONING, THOUGHT, Message
from research.text.rendering import RenderingError, View
from research.text.special_names import PLACE, find_blocks
from research.text.template_input import TemplateInput

# Variables that rendering sets itself.
_RESERVED = frozenset(
    "messages tools add_generation_prompt strftime_now raise_exception namespace".split()
)
# Parts of a call that say again what the order of calls says.
_CALL_SIGNS = ("id", "type", "index", "function.id")
_REMEDY = (
    "it would be lost. Leave it out, give the objective another `template`, or name it in the "
    "objective's `ignored_fields` if it means nothing."
)


def check_variables(
    names: Collection[str], arguments: Mapping[str, Any], has_tools: bool = False
) -> None:
    """Raises ValueError for what the template, which uses `names`, never reads."""
    for name, value in arguments.items():
        if name in _RESERVED:
            raise ValueError(f"template_arguments: {name!r} is not for records or settings to say.")
        if isinstance(value, str) and value.strip().lower() in ("true", "false", "null", "none"):
            raise ValueError(
                f"template_arguments: {name!r} is the text {value!r}, which is true to a "
                "template whatever it says: give it as JSON, without quotes."
            )
    for name in (*arguments, *(["tools"] if has_tools else [])):
        if name not in names:
            raise ValueError(f"The chat template never reads {name!r}: {_REMEDY}")


def check_tool_results(source: TemplateInput) -> None:
    """Raises ValueError where results are in another order than their calls by their ids or, where
    these are missing, by names, and the template does not write which: each would seem to answer
    another call."""
    waiting: list[tuple[int, Mapping[str, Any]]] = []
    for number, message in enumerate(source.messages):
        if message["role"] == "assistant":
            waiting = [(number, call) for call in message.get("tool_calls", [])]
        elif message["role"] == "tool" and waiting:
            caller, call = waiting.pop(0)
            name = call.get("function", call).get("name")
            pairs = (("tool_call_id", call.get("id")), ("name", name))
            for field, expected in pairs:
                if expected and message.get(field) and message[field] != expected:
                    _check_order(source, caller, number, field, expected)
                    break  # ids that the template writes say more than names


def _check_order(
    source: TemplateInput, caller: int, number: int, field: str, expected: Any
) -> None:
    """Raises ValueError unless the template writes the field by which a result names its call."""
    message = source.messages[number]
    changes: list[tuple[tuple[Any, ...], ...]] = [((number, field, expected),)]
    if field == "tool_call_id":  # of the calls too
        calls = source.messages[caller]["tool_calls"]
        changes.append(((caller, "tool_calls", [call | {"id": message[field]} for call in calls]),))
    views = [View(number + 1), *(View(number + 1, changes=each) for each in changes)]
    text, *changed_texts = source.render(views)
    if not isinstance(text, RenderingError) and text in changed_texts:
        what = "no ids" if field == "tool_call_id" else "no names beside results"
        raise ValueError(
            f"message {number} answers the call {message[field]!r} where {expected!r} is next, and "
            f"the chat template writes {what}: put results in the order of their calls."
        )


def check_fields(source: TemplateInput, texts: Mapping[int, str]) -> None:
    """Compares texts with those without a field, where messages say more than role and content.

    A call's id and a tool's name may be left out: they say again what the order of calls says.
    Thoughts of an answer that is not trained on may be too: that is how their templates are meant.

    Args:
      source: the conversation.
      texts: message number -> the rendered text up to it, of every message that is trained on.

    Raises:
        ValueError: the text is the same without what a record says.
    """
    views, wholes, causes = [], [], []
    unseen = _find_unseen(source, texts)
    for number, message in enumerate(source.marked):
        later = number if number in texts else min((n for n in texts if n > number), default=None)
        if later is None:  # nothing is trained after it
            continue
        stop = min(later + 1, len(source.marked))
        _check_arguments(number, message, texts[later])
        if later < len(source.marked):  # what a model has said since is as it is
            _check_thought_tags(source, number, texts[later])
        for names in _fields(message, is_trained=number in texts):
            changes = tuple((number, name) for name in names)
            views.append(View(stop, stop == later, changes=changes))
            wholes.append(texts[later])
            causes.append(f"{names[0]!r} of message {number} ({message['role']})")
        calls = message.get("tool_calls", [])
        for index in range(len(calls) if len(calls) > 1 else 0):
            change = (number, "tool_calls", calls[:index] + calls[index + 1 :])
            views.append(View(stop, stop == later, changes=(change,)))
            wholes.append(texts[later])
            causes.append(f"call {index + 1} of {len(calls)} of message {number} (assistant)")
        for field, path in unseen.get(number, ()):
            value = leaves.change(message[field], path)
            views.append(View(stop, stop == later, changes=((number, field, value),)))
            wholes.append(texts[later])
            cause = f"message {number} ({message['role']})"
            part = f"{leaves.spell(path[1:])!r} of call {path[0] + 1} of " if path else "what "
            causes.append(part + cause + ("" if path else " says"))
    if source.variables["tools"]:
        last = max(texts)
        stop = min(last + 1, len(source.marked))
        views.append(View(stop, stop == last, changes=(), without=("tools",)))
        wholes.append(texts[last])
        causes.append("the tools")
    _compare(source, views, wholes, causes)


def _compare(
    source: TemplateInput, views: Sequence[View], wholes: Sequence[str], causes: Sequence[str]
) -> None:
    """Raises ValueError where a view, which says something else, has the same text."""
    for text, whole, cause in zip(
        source.render(views) if views else [], wholes, causes, strict=True
    ):
        if not isinstance(text, RenderingError) and find_blocks(text)[0].startswith(whole):
            raise ValueError(f"The chat template leaves out {cause}: {_REMEDY}")


def _find_unseen(
    source: TemplateInput, texts: Mapping[int, str]
) -> dict[int, list[tuple[str, leaves.Path]]]:
    """Message number -> its contents and parts of calls that are not seen to be written: all are
    signed at once, so that one more text shows those that are. The others are looked at apart."""
    candidates: dict[int, list[tuple[str, leaves.Path]]] = {}
    laters: dict[int, list[int]] = {}
    for number, message in enumerate(source.marked):
        later = number if number in texts else min((n for n in texts if n > number), default=None)
        if later is None:
            continue
        is_checked = message["role"] != "assistant" and message["content"].strip()
        own: list[tuple[str, leaves.Path]] = [("content", ())] if is_checked else []
        for path in leaves.find(message.get("tool_calls", []), source.ignored):
            if leaves.spell(path[1:]) not in _CALL_SIGNS:
                own.append(("tool_calls", path))
        if own:
            candidates[number] = own
            laters.setdefault(later, []).append(number)
    unseen: dict[int, list[tuple[str, leaves.Path]]] = {}
    views, signs_by_view = [], []
    for later, numbers in laters.items():
        signs: dict[tuple[int, str, leaves.Path], str] = {}
        changes: list[tuple[Any, ...]] = []
        for number in numbers:
            message = source.marked[number]
            by_field: dict[str, dict[leaves.Path, str]] = {}
            for field, path in candidates[number]:
                sign = f"{PLACE}{len(signs)}{PLACE}"
                signs[number, field, path] = sign
                by_field.setdefault(field, {})[path] = sign
            changes += [
                (number, field, leaves.sign(message[field], own)) for field, own in by_field.items()
            ]
        stop = min(later + 1, len(source.marked))
        views.append(View(stop, stop == later, tuple(changes)))
        signs_by_view.append(signs)
    for text, signs in zip(source.render(views) if views else [], signs_by_view, strict=True):
        for (number, field, path), sign in signs.items():
            if isinstance(text, RenderingError) or sign not in text:
                unseen.setdefault(number, []).append((field, path))
    return unseen


def check_tools(source: TemplateInput, texts: Mapping[int, str]) -> None:
    """Raises ValueError for a part of the tools' schemas without which the text is the same."""
    tools = source.marked_variables["tools"]
    paths = [
        path
        for path in leaves.find(tools, source.ignored)
        if not (path[-1] == "type" and leaves.value(tools, path) in ("object", "function"))
    ]
    signs = {path: f"{PLACE}{number}{PLACE}" for number, path in enumerate(paths)}
    last = max(texts)
    stop = min(last + 1, len(source.marked))
    view = View(stop, stop == last, variables={"tools": leaves.sign(tools, signs)})
    (text,) = source.render([view])
    unseen = [p for p in paths if isinstance(text, RenderingError) or signs[p] not in text]
    views = [
        View(stop, stop == last, variables={"tools": leaves.change(tools, path)}) for path in unseen
    ]
    causes = [f"{leaves.spell(path[1:])!r} of tool {path[0] + 1}" for path in unseen]
    _compare(source, views, [texts[last]] * len(views), causes)


def _check_arguments(number: int, message: Message, text: str) -> None:
    """Raises ValueError where arguments that are JSON already are written as JSON once more."""
    for call in message.get("tool_calls", []):
        arguments = call.get("function", call).get("arguments")
        if not isinstance(arguments, str) or arguments in text:
            continue
        if json.dumps(arguments, ensure_ascii=False) in text:
            raise ValueError(
                f"The chat template writes the arguments of a call in message {number} as quoted "
                "text, since they are JSON text: give them as an object (a transform of kind "
                "python reads them)."
            )


def _check_thought_tags(source: TemplateInput, number: int, text: str) -> None:
    """Raises ValueError where an answer spells the end of thoughts and the template splits it:
    what comes before would be thoughts. It is, where the template opens them when it asks."""
    message = source.marked[number]
    content = message["content"]
    thoughts = THOUGHT.match(content)
    spoken = content[thoughts.end() :] if thoughts else content
    if message["role"] != "assistant" or "</think>" not in spoken or content.strip() in text:
        return
    (prompt,) = source.render([View(number, ask=True)])
    if isinstance(prompt, RenderingError) or not prompt.rstrip().endswith("<think>"):
        raise ValueError(
            f"The chat template splits what the assistant says (message {number}) at '</think>', "
            "as if thoughts came before it: write them between <think> and </think> at its "
            "beginning, or as reasoning_content, and the tag otherwise in other characters."
        )


def _fields(message: Message, is_trained: bool) -> list[list[str]]:
    """Fields that are looked at, those that mean the same together."""
    exempt = {"role", "content", "tool_call_id", *REASONING}
    if message["role"] == "tool":
        exempt.add("name")
    groups = [
        [name] for name in message if name not in exempt and message[name] not in ("", [], {})
    ]
    thoughts = [name for name in REASONING if name in message]
    return [*groups, *([thoughts] if thoughts and is_trained else [])]
