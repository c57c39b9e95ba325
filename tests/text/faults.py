"""Conversations that were once refused or trained on wrongly, and what Qwen3's template makes."""

import dataclasses
from typing import Any

from research.text.conversation import Conversation
from research.text.conversation_writer import Writer
from tests.text.templates import assistant, conversation, user

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


def _call(**arguments: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "weather", "arguments": arguments}}


_RESULT = {"role": "tool", "content": "rain"}
EMPTY = "<think>\n\n</think>\n\n"


@dataclasses.dataclass(frozen=True)
class Fault:
    """A record, and what each of its examples trains on; `{call}` is how a template calls."""

    record: dict[str, Any]
    trained: tuple[str, ...] = ()
    # Part of the error, where it is refused.
    refusal: str = ""


FAULTS = {
    "multiturn_plain": Fault(
        {
            "messages": [
                user("Name a colour."),
                assistant("Blue."),
                user("Another?"),
                assistant("Green."),
            ]
        },
        (EMPTY + "Blue.", EMPTY + "Green."),
    ),
    "multiturn_think": Fault(
        {
            "messages": [
                user("What is 2+2?"),
                assistant("<think>Two and two.</think>\n\n4"),
                user("And 3+3?"),
                assistant("<think>Three and three.</think>\n\n6"),
            ]
        },
        (
            "<think>\nTwo and two.\n</think>\n\n4",
            "<think>\nThree and three.\n</think>\n\n6",
        ),
    ),
    "reasoning_content": Fault(
        {
            "messages": [
                user("What is 2+2?"),
                assistant("4", reasoning_content="Two and two make four."),
            ]
        },
        ("<think>\nTwo and two make four.\n</think>\n\n4",),
    ),
    "tool_calls": Fault(
        {
            "messages": [
                user("Weather in Oslo?"),
                assistant("", tool_calls=[_call(city="Oslo")]),
                _RESULT,
                assistant("It rains."),
            ],
            "tools": [WEATHER],
        },
        (EMPTY + '{call}{"city": "Oslo"}', EMPTY + "It rains."),
    ),
    "tool_calls_null_content": Fault(
        {
            "messages": [
                user("Weather?"),
                assistant(None, tool_calls=[_call()]),
                _RESULT,
                assistant("Rain."),
            ]
        },
        (EMPTY + "{call}{}", EMPTY + "Rain."),
    ),
    "prompt_completion_messages": Fault(
        {"prompt": [user("Name a colour.")], "completion": [assistant("Blue.")]},
        (EMPTY + "Blue.",),
    ),
    "train_flag": Fault(
        {
            "messages": [
                user("Q1"),
                assistant("bad answer", train=False),
                user("Q2"),
                assistant("good answer", train=True),
            ]
        },
        (EMPTY + "good answer",),
    ),
    "consecutive_assistant": Fault(
        {"messages": [user("Q1"), assistant("part one."), assistant("part two.")]},
        refusal="Messages 1 and 2 are both the assistant's",
    ),
    "last_turn_user": Fault(
        {"messages": [user("Name a colour."), assistant("Blue."), user("Thanks, another?")]},
        (EMPTY + "Blue.",),
    ),
}


def check(fault: Fault, writer: Writer, call: tuple[str, str]) -> None:
    """Whether a template like Qwen3's does what it should.

    Args:
      fault: the record.
      writer: writes it.
      call: what stands before and after a call's arguments.
    """
    source: Conversation = conversation(fault.record)
    try:
        examples = writer.write(source)
    except ValueError as error:
        assert fault.refusal and fault.refusal in str(error)
        return
    texts = ["".join(p.text for p in example.parts if p.weight) for example in examples]
    expected = [
        text.replace("{call}", call[0]) + (call[1] if "{call}" in text else "") + "<|im_end|>"
        for text in fault.trained
    ]
    assert texts == expected
    for text, example in zip(expected, examples, strict=True):
        whole = "".join(part.text for part in example.parts)
        assert whole.endswith("<|im_start|>assistant\n" + text)
        assert "bad answer" not in text and "rain<" not in text
