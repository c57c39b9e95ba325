"""A prompt and its completion, as such or as Alpaca's instruction, input and output."""

from collections.abc import Sequence
from typing import Any

from research.data.sources.formats.base import Format, Record, read_text
from research.data.sources.formats.unread import check_pair_fields


def _has_pair(record: Record) -> bool:
    return "prompt" in record and "completion" in record


def _read_pair(record: Record, label_words: Sequence[str]) -> dict[str, Any]:
    texts = {name: read_text(record, name) for name in ("prompt", "completion")}
    check_pair_fields(record, texts["completion"], list(texts))
    return texts


def _has_instruction(record: Record) -> bool:
    return "instruction" in record and "output" in record


def _read_alpaca(record: Record, label_words: Sequence[str]) -> dict[str, Any]:
    for name in ("system", "history"):
        if record.get(name):
            raise ValueError(f"field {name!r} is not part of the format: write it as messages.")
    parts = [read_text(record, "instruction")]
    if record.get("input") is not None:
        parts.append(read_text(record, "input"))
    prompt = "\n\n".join(part for part in parts if part)
    completion = read_text(record, "output")
    check_pair_fields(record, completion, ["output"])
    return {"prompt": prompt, "completion": completion}


PAIR = Format(_has_pair, _read_pair)
ALPACA = Format(_has_instruction, _read_alpaca)
