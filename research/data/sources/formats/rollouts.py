"""Answers that a model gave, as `research.phases.rollouts` writes them: tokens and an advantage."""

import math
from collections.abc import Sequence
from typing import Any

from research.data.sources.formats.base import Format, Record, check_text

_IDS = ("prompt_ids", "answer_ids")
_TEXTS = ("prompt", "answer")


def _has_ids(record: Record) -> bool:
    return all(name in record for name in (*_IDS, "advantage"))


def _read_rollout(record: Record, label_words: Sequence[str]) -> dict[str, Any]:
    for name in _IDS:
        ids = record[name]
        if not isinstance(ids, list) or not ids or not all(type(i) is int and i >= 0 for i in ids):
            raise ValueError(f"field {name!r} must be token ids, at least one, not {ids!r:.60}.")
    advantage = record["advantage"]
    is_number = isinstance(advantage, int | float) and not isinstance(advantage, bool)
    if not is_number or not math.isfinite(advantage):
        raise ValueError(f"field 'advantage' must be a finite number, not {advantage!r:.60}.")
    return {name: check_text(record[name], f"field {name!r}") for name in _TEXTS}


ROLLOUTS = Format(
    _has_ids,
    _read_rollout,
    frozenset({*_IDS, *_TEXTS, "advantage", "reward", "row", "is_cut"}),
    (*_TEXTS, *_IDS, "advantage"),
)
