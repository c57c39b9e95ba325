"""A text and its label: text, or a number that the source's label words say."""

from collections.abc import Sequence
from typing import Any

from research.data.sources.formats.base import Format, Record, check_text, read_text


def _has_label(record: Record) -> bool:
    return "text" in record and type(record.get("label")) in (int, str)


def _read_classification(record: Record, label_words: Sequence[str]) -> dict[str, Any]:
    label: Any = record.get("label")
    text = read_text(record, "text")
    if isinstance(label, str):
        if label_words and label not in label_words:
            raise ValueError(f"label {label!r} is none of label_words ({', '.join(label_words)}).")
        return {"prompt": text, "completion": check_text(label, "field 'label'")}
    if type(label) not in (int, float):
        raise ValueError(f"field 'label' must be a number or text, not {type(label).__name__}.")
    if not label_words:  # It can still be read as text, or by an objective that reads numbers.
        return {}
    if type(label) is float:
        raise ValueError(f"label {label} is no whole number, of which label_words has a word.")
    if not 0 <= label < len(label_words):
        raise ValueError(f"label {label} has no word: label_words has {len(label_words)}, from 0.")
    return {"prompt": text, "completion": label_words[label]}


CLASSIFICATION = Format(
    _has_label, _read_classification, frozenset({"text", "label"}), ("text", "label")
)
