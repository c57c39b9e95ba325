"""A prompt and its completion, as such or as Alpaca's instruction, input and output."""

from collections.abc import Sequence
from typing import Any

from research.data.sources.formats.base import Format, Record, read_text


def _has_pair(record: Record) -> bool:
    return "prompt" in record and "completion" in record


def _read_pair(record: Record, label_words: Sequence[str]) -> dict[str, Any]:
    return {name: read_text(record, name) for name in ("prompt", "completion")}


def _has_instruction(record: Record) -> bool:
    return "instruction" in record and "output" in record


def _read_alpaca(record: Record, label_words: Sequence[str]) -> dict[str, Any]:
    parts = [read_text(record, "instruction")]
    if record.get("input") is not None:
        parts.append(read_text(record, "input"))
    prompt = "\n\n".join(part for part in parts if part)
    return {"prompt": prompt, "completion": read_text(record, "output")}


_PAIR = ("prompt", "completion")
PAIR = Format(_has_pair, _read_pair, frozenset(_PAIR), _PAIR)
_ALPACA = ("instruction", "output")
ALPACA = Format(_has_instruction, _read_alpaca, frozenset({*_ALPACA, "input"}), _ALPACA)
