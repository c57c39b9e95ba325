"""Answers as JSON of the protocol: whole, or as chunks of a stream."""

from __future__ import annotations

import dataclasses
import secrets
import time
from collections.abc import Sequence
from typing import Any

from research.serving.engine import Part
from research.serving.protocol import ChatRequest


@dataclasses.dataclass
class Completion:
    """An answer to a request, made of the parts of its choices."""

    request: ChatRequest
    # of the prompt
    prompt_tokens: int
    id: str = dataclasses.field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = dataclasses.field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        count = self.request.n or 1
        self._texts = [""] * count
        self._tokens = [0] * count
        self._reasons: list[str | None] = [None] * count

    @property
    def is_whole(self) -> bool:
        """Whether every choice has ended."""
        return None not in self._reasons

    def add(self, part: Part) -> None:
        self._texts[part.choice] += part.text
        self._tokens[part.choice] = part.tokens
        self._reasons[part.choice] = part.finish_reason

    @property
    def usage(self) -> dict[str, int]:
        """Tokens of the prompt, once, and of all choices, those that ended them included."""
        completion = sum(self._tokens)
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
                "message": {"role": "assistant", "content": text, "refusal": None},
                "logprobs": None,
                "finish_reason": reason,
            }
            for index, (text, reason) in enumerate(zip(self._texts, self._reasons, strict=True))
        ]
        return self._object("chat.completion", choices) | {"usage": self.usage}

    def opening(self) -> list[dict[str, Any]]:
        """The chunks before a stream's first text."""
        delta = {"role": "assistant", "content": "", "refusal": None}
        return [self._chunk(index, delta, None) for index in range(len(self._texts))]

    def chunks(self, part: Part) -> list[dict[str, Any]]:
        """The chunks of a stream that a part gives."""
        chunks = [self._chunk(part.choice, {"content": part.text}, None)] if part.text else []
        if part.finish_reason is not None:
            chunks.append(self._chunk(part.choice, {}, part.finish_reason))
        return chunks

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
