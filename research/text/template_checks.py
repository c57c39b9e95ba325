"""What a conversation says and a chat template leaves out: refused by name, never lost."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from research.text.conversation import REASONING, THOUGHT, Message
from research.text.rendering import RenderingError, View
from research.text.special_names import PLACE, find_blocks
from research.text.template_input import TemplateInput

# Variables that rendering sets itself.
_RESERVED = frozenset(
    "messages tools add_generation_prompt strftime_now raise_exception namespace".split()
)
_REMEDY = (
    "it would be lost. Leave it out, give the objective another `template`, or name it in the "
    "objective's `ignored_fields` if it means nothing."
)


def check_variables(
    names: Collection[str], arguments: Mapping[str, Any], has_tools: bool = False
) -> None:
    """Raises ValueError for what the template, which uses `names`, never reads."""
    for name in arguments:
        if name in _RESERVED:
            raise ValueError(f"template_arguments: {name!r} is not for records or settings to say.")
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
        content = message["content"]
        if message["role"] != "assistant" and content.strip() not in texts[later]:
            change = (number, "content", content + PLACE)
            views.append(View(stop, stop == later, changes=(change,)))
            wholes.append(texts[later])
            causes.append(f"what message {number} ({message['role']}) says")
    if source.variables["tools"]:
        last = max(texts)
        stop = min(last + 1, len(source.marked))
        views.append(View(stop, stop == last, changes=(), without=("tools",)))
        wholes.append(texts[last])
        causes.append("the tools")
    for text, whole, cause in zip(
        source.render(views) if views else [], wholes, causes, strict=True
    ):
        if not isinstance(text, RenderingError) and find_blocks(text)[0].startswith(whole):
            raise ValueError(f"The chat template leaves out {cause}: {_REMEDY}")


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
    groups = [[name] for name in message if name not in exempt]
    thoughts = [name for name in REASONING if name in message]
    return [*groups, *([thoughts] if thoughts and is_trained else [])]
