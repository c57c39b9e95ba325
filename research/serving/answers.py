"""Answers as JSON of the protocol: whole, or as chunks of a stream."""

from __future__ import annotations

import dataclasses
import secrets
import time
from collections.abc import Sequence
from typing import Any

from research.serving.engine import Part
from research.serving.protocol import ChatRequest
from research.text.thoughts import ThoughtMarks
from research.text.tool_calls import CallForm, CallReader, ToolCall

# Characters of a call's id: some templates take no other number.
_ID_LENGTH = 9


@dataclasses.dataclass
class _Choice:
    """One of the answers, so far."""

    # None: calls are not looked for
    reader: CallReader | None
    text: str = ""
    calls: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    tokens: int = 0
    reason: str | None = None

    def add(self, part: Part) -> list[dict[str, Any]]:
        """Takes a part; what a stream says of it: deltas of the message."""
        pieces: list[str | ToolCall] = [part.text] if part.text else []
        if self.reader is not None:
            pieces = self.reader.add(part.text)
            pieces += self.reader.finish() if part.finish_reason is not None else []
        self.tokens, self.reason = part.tokens, part.finish_reason
        if self.calls or any(isinstance(piece, ToolCall) for piece in pieces):
            self.reason = "tool_calls" if self.reason == "stop" else self.reason
        return [self._add(piece) for piece in pieces]

    def _add(self, piece: str | ToolCall) -> dict[str, Any]:
        if isinstance(piece, str):
            self.text += piece
            return {"content": piece}
        call = {
            "id": piece.id or secrets.token_hex(_ID_LENGTH)[:_ID_LENGTH],
            "type": "function",
            "function": {"name": piece.name, "arguments": piece.arguments},
        }
        self.calls.append(call)
        return {"tool_calls": [{"index": len(self.calls) - 1, **call}]}

    @property
    def message(self) -> dict[str, Any]:
        """The whole message."""
        if not self.calls:
            return {"role": "assistant", "content": self.text, "refusal": None}
        message = {"role": "assistant", "content": self.text or None, "refusal": None}
        return message | {"tool_calls": self.calls}


@dataclasses.dataclass
class Completion:
    """An answer to a request, made of the parts of its choices."""

    request: ChatRequest
    # of the prompt
    prompt_tokens: int
    # how calls of tools stand in the answer; None: they are text
    call_form: CallForm | None = None
    # of thoughts, in which nothing is a call
    marks: ThoughtMarks = dataclasses.field(default_factory=ThoughtMarks)
    id: str = dataclasses.field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = dataclasses.field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        form, names = self.call_form, self.request.callable_tools
        self._choices = [
            _Choice(None if form is None else CallReader(form, names, self.marks))
            for _ in range(self.request.n or 1)
        ]

    @property
    def is_whole(self) -> bool:
        """Whether every choice has ended."""
        return all(choice.reason is not None for choice in self._choices)

    def add(self, part: Part) -> list[dict[str, Any]]:
        """Takes a part; the chunks of a stream that it gives."""
        choice = self._choices[part.choice]
        chunks = [self._chunk(part.choice, delta, None) for delta in choice.add(part)]
        if choice.reason is not None:
            chunks.append(self._chunk(part.choice, {}, choice.reason))
        return chunks

    @property
    def usage(self) -> dict[str, int]:
        """Tokens of the prompt, once, and of all choices, those that ended them included."""
        completion = sum(choice.tokens for choice in self._choices)
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": completion,
            "total_tokens": self.prompt_tokens + completion,
        }

    @property
    def body(self) -> dict[str, Any]:
        """The whole answer."""
        choices = [
            {
                "index": index,
                "message": choice.message,
                "logprobs": None,
                "finish_reason": choice.reason,
            }
            for index, choice in enumerate(self._choices)
        ]
        return self._object("chat.completion", choices) | {"usage": self.usage}

    def opening(self) -> list[dict[str, Any]]:
        """The chunks before a stream's first text."""
        delta = {"role": "assistant", "content": "", "refusal": None}
        return [self._chunk(index, delta, None) for index in range(len(self._choices))]

    def closing(self) -> list[dict[str, Any]]:
        """The chunks after a stream's last text."""
        return [self._object("chat.completion.chunk", []) | {"usage": self.usage}] * self._has_usage

    @property
    def _has_usage(self) -> bool:
        options = self.request.stream_options
        return options is not None and options.include_usage

    def _chunk(self, index: int, delta: dict[str, Any], reason: str | None) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}
        usage = {"usage": None} if self._has_usage else {}
        return self._object("chat.completion.chunk", [choice]) | usage

    def _object(self, kind: str, choices: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.request.model,
            "choices": list(choices),
        }
