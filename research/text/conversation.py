"""Conversations: what a record says of one, and what a chat template and training read of it."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from research.text.record_shapes import explain_missing

# What a template reads of a message: `role`, `content`, and whatever else the record has.
Message = Mapping[str, Any]
# The field of a message that says how much its tokens count in training; no template reads it.
WEIGHT = "weight"
# Names under which a template may read what the assistant thinks, the standard one first.
REASONING = ("reasoning_content", "thinking", "reasoning")
# What the assistant thinks, where it is written in the content.
THOUGHT = re.compile(r"\s*<think>.*?</think>\s*", re.DOTALL)
_INTRODUCTION = ("system", "developer")


@dataclasses.dataclass(frozen=True)
class Conversation:
    """Messages, how much each answer counts, and what a template reads beside them."""

    # Oldest first.
    messages: tuple[Message, ...]
    # Of each message; 0 where it is not trained on.
    weights: tuple[float, ...]
    # Functions that the assistant may call, as JSON schemas.
    tools: tuple[Mapping[str, Any], ...] = ()
    # Other variables of the template, such as `{"enable_thinking": False}`.
    template_arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def answers(self) -> list[int]:
        """Numbers of the assistant's messages."""
        return [i for i, message in enumerate(self.messages) if message["role"] == "assistant"]

    @property
    def introduction(self) -> int:
        """How many messages come before the first speaker: the system's."""
        first = itertools.takewhile(lambda m: m["role"] in _INTRODUCTION, self.messages)
        return sum(1 for _ in first)

    def train_only(self, numbers: Collection[int]) -> Conversation:
        """The same, with weight 0 for all messages but these."""
        weights = [w if i in numbers else 0.0 for i, w in enumerate(self.weights)]
        return dataclasses.replace(self, weights=tuple(weights))

    def between(self, start: int, stop: int) -> Conversation:
        """Its introduction and messages start .. stop - 1."""
        first = self.introduction
        return dataclasses.replace(
            self,
            messages=(*self.messages[:first], *self.messages[start:stop]),
            weights=(*self.weights[:first], *self.weights[start:stop]),
        )


def from_messages(
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]] = (),
    template_arguments: Mapping[str, Any] | None = None,
) -> Conversation:
    """A conversation of messages that may have a `weight`; without one, every answer counts."""
    weights = [float(m.get(WEIGHT, 1)) if m["role"] == "assistant" else 0.0 for m in messages]
    plain = [{k: v for k, v in message.items() if k != WEIGHT} for message in messages]
    return Conversation(tuple(plain), tuple(weights), tuple(tools), dict(template_arguments or {}))


def read_conversation(example: Mapping[str, Any], where: str) -> Conversation:
    """The conversation of an example: `messages`, or `prompt` and `completion` as two turns.

    Raises:
        ValueError: it has none; says what the example looks like.
    """
    if isinstance(example.get("messages"), list):
        return from_messages(
            example["messages"], example.get("tools") or (), example.get("template_arguments")
        )
    if not all(isinstance(example.get(name), str) for name in ("prompt", "completion")):
        raise ValueError(
            f"{where}: there are no 'messages', and no 'prompt' with 'completion', only "
            f"{sorted(example)}. {explain_missing(example)}"
        )
    return from_messages(
        [
            {"role": "user", "content": example["prompt"]},
            {"role": "assistant", "content": example["completion"]},
        ]
    )


def message_texts(message: Message) -> list[str]:
    """Every text that a template may write of a message: its content, thoughts and calls."""
    extra = {k: v for k, v in message.items() if k not in ("role", "content", WEIGHT, *REASONING)}
    thoughts = next((message[name] for name in REASONING if name in message), None)
    return [message["content"], *([thoughts] if thoughts else []), *nested_texts(extra)]


def nested_texts(value: Any) -> list[str]:
    """The strings of a JSON value."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [text for item in value for text in nested_texts(item)]
    return []
