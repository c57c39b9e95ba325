"""Records without labels: documents, and whatever no other format fits."""

from collections.abc import Sequence
from typing import Any

from research.data.sources.formats.base import Format, Record, read_text


def _has_text(record: Record) -> bool:
    return "text" in record


def _read_document(record: Record, label_words: Sequence[str]) -> dict[str, Any]:
    return {"text": read_text(record, "text")}


def _is_any(record: Record) -> bool:
    return True


def _add_nothing(record: Record, label_words: Sequence[str]) -> dict[str, Any]:
    return {}


TEXT = Format(_has_text, _read_document, frozenset({"text"}), ("text",), takes_any=True)
OTHER = Format(_is_any, _add_nothing, frozenset(), (), takes_any=True)
