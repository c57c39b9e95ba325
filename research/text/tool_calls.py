"""Calls of tools as a chat template writes them: what of a model's answer is one.

A template is asked to write one call, and how it writes it is how calls are read: as JSON with the
function's name and its arguments, between two texts (Hermes, Qwen), behind one (Mistral), or as the
whole answer (Llama 3.1). A template that writes calls otherwise has no form, and they stay text.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from research.text.conversation import THOUGHT, from_messages
from research.text.conversation_writer import Writer
from research.text.thoughts import ThoughtMarks

# What a template is asked to write, in words that are none of its own.
_NAME, _ARGUMENTS = "probe_function", {"probe_argument": "probe value"}
# Beside a call's name and arguments, in its JSON.
_SIGNS = frozenset(("id", "type"))


@dataclasses.dataclass(frozen=True)
class ToolCall:
    """A call that a model wrote."""

    name: str
    # as JSON text
    arguments: str
    # that the model gave it; empty: none
    id: str = ""


@dataclasses.dataclass(frozen=True)
class CallForm:
    """How calls are written."""

    # in front of a call, or of a list of them; empty: an answer that calls is nothing else
    begin: str
    # behind it; may be empty
    end: str
    # key of the arguments in a call's JSON
    arguments: str
    # whether calls stand in a JSON list
    is_list: bool
    # special tokens in what is in front and behind
    special: frozenset[str] = frozenset()

    def read(self, value: Any, names: Collection[str]) -> list[ToolCall]:
        """The calls in a JSON value; none where it is anything but calls of known functions."""
        entries = value if self.is_list else [value]
        if not isinstance(entries, list):
            return []
        calls = []
        for entry in entries:
            if not isinstance(entry, dict) or entry.get("name") not in names:
                return []
            arguments, id = entry.get(self.arguments), entry.get("id", "")
            if not isinstance(arguments, dict) or set(entry) - {"name", self.arguments} - _SIGNS:
                return []
            text = json.dumps(arguments, ensure_ascii=False)
            calls.append(ToolCall(entry["name"], text, id if isinstance(id, str) else ""))
        return calls

    def grammar(self, schemas: Mapping[str, Mapping[str, Any] | None]) -> str:
        """A Lark grammar of llguidance's kind: answers that are one call.

        Args:
          schemas: name of a function -> JSON Schema of its arguments; None: any object.

        Raises:
          ValueError: calls have special tokens, which a grammar of texts has not.
        """
        if self.special:
            raise ValueError(f"the model writes calls with {', '.join(sorted(self.special))}")
        parts = [
            {"name": {"const": name}, self.arguments: schema or {"type": "object"}}
            for name, schema in schemas.items()
        ]
        closed = {"type": "object", "additionalProperties": False}
        options = [closed | {"properties": part, "required": [*part]} for part in parts]
        around = (self.begin + "[" * self.is_list, "]" * self.is_list + self.end)
        before, after = (json.dumps(text, ensure_ascii=False) if text else "" for text in around)
        call = json.dumps(options[0] if len(options) == 1 else {"anyOf": options})
        return f"start: {before} call {after}\ncall: %json {call}\n"


def find_call_form(writer: Writer, special: Collection[str]) -> CallForm | None:
    """How a template writes calls; None: it takes none, or writes them otherwise than as JSON.

    Args:
      special: tokens of the tokenizer that no text is tokenized to.
    """
    function = {"name": _NAME, "description": "f", "parameters": {}}
    call = {"name": _NAME, "arguments": _ARGUMENTS}
    calls = [{"id": "call00001", "type": "function", "function": call}]
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": "", "tool_calls": calls},
    ]
    try:
        conversation = from_messages(messages, [{"type": "function", "function": function}])
        parts = writer.write(conversation)[-1].parts
    except ValueError:
        return None
    answer = writer.unmark("".join(part.text for part in parts if part.weight))
    end = next(part.end for part in reversed(parts) if part.end)
    return _read_form(answer.rpartition(end)[0], special)


def _read_form(text: str, special: Collection[str]) -> CallForm | None:
    """The form of the one call that a text holds."""
    for start in (place for place, character in enumerate(text) if character in "[{"):
        try:
            value, stop = json.JSONDecoder().raw_decode(text, start)
        except ValueError:
            continue
        begin, end = THOUGHT.sub("", text[:start]), text[stop:]
        names = frozenset(name for name in special if name in begin or name in end)
        for key in ("arguments", "parameters"):
            form = CallForm(begin, end, key, isinstance(value, list), names)
            calls = form.read(value, (_NAME,))
            if len(calls) == 1 and json.loads(calls[0].arguments) == _ARGUMENTS:
                return form if begin.strip() or not end.strip() else None
    return None


class CallReader:
    """Tells the calls of an answer from its text, while it comes.

    What may be a call is held back until it is whole; what turns out to be none is text.
    """

    def __init__(self, form: CallForm, names: Collection[str], marks: ThoughtMarks | None = None):
        """
        Args:
          names: of the functions that may be called.
          marks: of thoughts, among which there are no calls; None: `<think>`.
        """
        self._form, self._names = form, names
        self._pairs = (marks or ThoughtMarks()).pairs
        self._begin, self._end = form.begin.strip(), form.end.strip()
        self._pending = ""
        # the text that was given, and whether a call was
        self._text, self.has_calls = "", False

    def add(self, text: str) -> list[str | ToolCall]:
        """What is known since the last text."""
        self._pending += text
        return self._read(is_over=False)

    def finish(self) -> list[str | ToolCall]:
        """What is left."""
        return self._read(is_over=True)

    def _read(self, is_over: bool) -> list[str | ToolCall]:
        if not self._begin:
            return self._read_whole(is_over)
        pieces: list[str | ToolCall] = []
        while (place := self._find()) >= 0:
            rest = self._pending[place + len(self._begin) :]
            calls, length = self._read_calls(rest, is_over)
            before = self._pending[:place].rstrip()
            if length < 0:
                pieces += self._show(before)
                self._pending = self._pending[len(before) :]
                break
            if calls:
                pieces += [*self._show(before), *calls]
                self._pending, self.has_calls = rest[length:], True
            else:  # it is none: text
                pieces += self._show(self._pending[: place + len(self._begin)])
                self._pending = rest
        else:
            kept_size = 0 if is_over else self._may_begin()
            text = self._pending[: len(self._pending) - kept_size]
            if is_over and self.has_calls:
                text = text.rstrip()
            pieces += self._show(text)
            self._pending = self._pending[len(self._pending) - kept_size :]
        return pieces

    def _find(self) -> int:
        """Where a call may begin in what is held: not among thoughts."""
        place = self._pending.find(self._begin)
        before = self._text + self._pending[: max(place, 0)]
        thinks = any(before.rfind(begin) > before.rfind(end) for begin, end in self._pairs)
        return -1 if thinks else place

    def _read_calls(self, rest: str, is_over: bool) -> tuple[Sequence[ToolCall], int]:
        """Calls behind their beginning and the length of all; -1: more must come first."""
        start = len(rest) - len(rest.lstrip())
        try:
            value, stop = json.JSONDecoder().raw_decode(rest, start)
        except (ValueError, RecursionError):
            return (), 0 if is_over else -1
        after = rest[stop:].lstrip()
        if after.startswith(self._end):
            return self._form.read(value, self._names), len(rest) - len(after) + len(self._end)
        if is_over and not after:  # the token that ends an answer came first
            return self._form.read(value, self._names), len(rest)
        return (), 0 if is_over or not self._end.startswith(after) else -1

    def _read_whole(self, is_over: bool) -> list[str | ToolCall]:
        """Of a form in which a call is the whole answer."""
        opening = "[" if self._form.is_list else "{"
        if not self._text and self._pending.lstrip()[:1] in ("", opening):
            if not is_over:
                return []
            try:
                calls = self._form.read(json.loads(self._pending), self._names)
            except (ValueError, RecursionError):
                calls = []
            if calls:
                self._pending, self.has_calls = "", True
                return [*calls]
        text, self._pending = self._pending, ""
        return [*self._show(text)]

    def _show(self, text: str) -> list[str]:
        self._text += text
        return [text] if text else []

    def _may_begin(self) -> int:
        """Characters at the end of what is held that may belong to a call's beginning."""
        sizes = range(min(len(self._pending), len(self._begin) - 1), 0, -1)
        size = next((n for n in sizes if self._pending.endswith(self._begin[:n])), 0)
        before = self._pending[: len(self._pending) - size]
        return size + len(before) - len(before.rstrip())
