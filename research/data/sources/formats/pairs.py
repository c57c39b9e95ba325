"""A prompt and its completion, as such or as Alpaca's instruction, input and output."""

from collections.abc import Mapping, Sequence
from typing import Any

from research.data.sources.formats.base import Format, Record, read_text, refuse_fields

# What a record may hold that a prompt and a completion have no place for.
_UNREAD = dict.fromkeys(
    "system_prompt tools documents images template_arguments chat_template_kwargs".split(),
    "write it as messages",
) | {"rejected": "no objective learns from preferences: remove it to train on the answers alone"}
_UNREAD_OF_PAIR = _UNREAD | dict.fromkeys(("system", "history"), "write it as messages")


def _check_fields(record: Record, unread: Mapping[str, str]) -> None:
    refuse_fields(record, unread)
    if record.get("label") is False:
        raise ValueError("field 'label' says that the answer is bad: leave the record out.")


def _has_pair(record: Record) -> bool:
    return "prompt" in record and "completion" in record


def _read_pair(record: Record, label_words: Sequence[str]) -> dict[str, Any]:
    _check_fields(record, _UNREAD_OF_PAIR)
    return {name: read_text(record, name) for name in ("prompt", "completion")}


def _has_instruction(record: Record) -> bool:
    return "instruction" in record and "output" in record


def _read_alpaca(record: Record, label_words: Sequence[str]) -> dict[str, Any]:
    for name in ("system", "history"):
        if record.get(name):
            raise ValueError(f"field {name!r} is not part of the format: write it as messages.")
    _check_fields(record, _UNREAD)
    parts = [read_text(record, "instruction")]
    if record.get("input") is not None:
        parts.append(read_text(record, "input"))
    prompt = "\n\n".join(part for part in parts if part)
    return {"prompt": prompt, "completion": read_text(record, "output")}


PAIR = Format(_has_pair, _read_pair)
ALPACA = Format(_has_instruction, _read_alpaca)
