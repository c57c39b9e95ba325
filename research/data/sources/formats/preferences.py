"""Answers that are preferred: pairs of a chosen and a rejected one, or answers with a label.

A pair has `prompt`, `chosen` and `rejected` as texts or messages (TRL's explicit prompt), or both
sides with the prompt in front (its implicit one): what they begin with is the prompt then. Other
objectives find none of the fields that they read in such an example.
"""

import os
from collections.abc import Sequence
from typing import Any

from research.data.sources.formats.base import Format, Record, check_text, has_value
from research.data.sources.formats.conversations import (
    BESIDE,
    list_turns,
    read_pair_of_messages,
)

_SIDES = ("chosen", "rejected")


def _has_pair(record: Record) -> bool:
    return all(name in record for name in _SIDES)


def _read_preference(record: Record, label_words: Sequence[str]) -> dict[str, Any]:
    """Both sides of a pair.

    Raises:
      ValueError: they are equal, one says nothing, or they are not of one kind.
    """
    kinds = {isinstance(record[name], list | dict) for name in _SIDES}
    if len(kinds) > 1:
        raise ValueError("'chosen' and 'rejected' must both be text, or both messages.")
    if kinds == {True}:
        return _read_messages(record)
    good, bad = (check_text(record[name], f"field {name!r}") for name in _SIDES)
    prompt = check_text(record["prompt"], "field 'prompt'") if _has_prompt(record) else None
    if prompt is None:
        prompt = _common_text(good, bad)
        good, bad = good[len(prompt) :], bad[len(prompt) :]
    _check_different(good, bad)
    for name, text in zip(_SIDES, (good, bad), strict=True):
        if not text.strip():
            raise ValueError(f"field {name!r} has no answer: nothing follows the prompt.")
    return {"prompt": prompt, "chosen": good, "rejected": bad}


def _has_prompt(record: Record) -> bool:
    return has_value(record.get("prompt"))


def _common_text(good: str, bad: str) -> str:
    """What both texts begin with, up to the white space before the word in which they differ.

    Raises:
      ValueError: it is nothing.
    """
    size = len(os.path.commonprefix([good, bad]))
    while size and not (size < len(good) and good[size].isspace()):
        size -= 1
    while size and good[size - 1].isspace() and good[size - 1] != "\n":
        size -= 1
    if not size:
        raise ValueError(
            "there is no 'prompt', and 'chosen' and 'rejected' have no common beginning to be it."
        )
    return good[:size]


def _read_messages(record: Record) -> dict[str, Any]:
    good, bad = (list_turns(record[name], name) for name in _SIDES)
    if _has_prompt(record) and isinstance(record["prompt"], str):
        # beside whole conversations it is what they begin with; beside answers, the user's message
        begins = {_role(turns[0]) for turns in (good, bad) if turns}
        if begins == {"assistant"}:
            prompt = [{"role": "user", "content": record["prompt"]}]
        else:
            prompt, good, bad = _common_turns(good, bad)
    elif _has_prompt(record):
        prompt = list_turns(record["prompt"], "prompt")
    else:
        prompt, good, bad = _common_turns(good, bad)
    _check_different(good, bad)
    sides = {
        name: read_pair_of_messages(record, prompt, turns, name)
        for name, turns in zip(_SIDES, (good, bad), strict=True)
    }
    # what stands beside messages is the same for both
    beside = {k: v for k, v in sides["chosen"].items() if k != "messages"}
    return {name: converted["messages"] for name, converted in sides.items()} | beside


def _role(turn: Any) -> Any:
    return turn.get("role", turn.get("from")) if isinstance(turn, dict) else None


def _common_turns(good: list[Any], bad: list[Any]) -> tuple[list[Any], list[Any], list[Any]]:
    """The messages that both begin with, and what follows in each.

    Raises:
      ValueError: there are none.
    """
    pairs = zip(good, bad, strict=False)
    count = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(good), len(bad)))
    if not count:
        raise ValueError(
            "there is no 'prompt', and 'chosen' and 'rejected' begin with no common message."
        )
    return good[:count], good[count:], bad[count:]


def _check_different(good: Any, bad: Any) -> None:
    if good == bad:
        raise ValueError("'chosen' and 'rejected' are equal, so that there is nothing to prefer.")


def _has_label(record: Record) -> bool:
    """Never by itself: a record with a label that is true may be read as a pair too."""
    return False


def _read_labelled(record: Record, label_words: Sequence[str]) -> dict[str, Any]:
    """The completion as `chosen` or as `rejected`, as its label says."""
    label = record["label"]
    if not isinstance(label, bool | int) or label not in (0, 1):
        raise ValueError(f"field 'label' must be true (a good answer) or false, not {label!r}.")
    side = _SIDES[0] if label else _SIDES[1]
    if isinstance(record["completion"], list | dict):
        prompt, answer = record["prompt"], list_turns(record["completion"], "completion")
        turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        turns = list_turns(turns, "prompt")
        converted = read_pair_of_messages(record, turns, answer, "prompt and completion")
        return {side: converted.pop("messages")} | converted
    completion = check_text(record["completion"], "field 'completion'")
    if not completion.strip():
        raise ValueError("field 'completion' has no answer.")
    return {"prompt": check_text(record["prompt"], "field 'prompt'"), side: completion}


_READS = frozenset({"prompt", *_SIDES, *BESIDE})
PREFERENCE = Format(_has_pair, _read_preference, _READS, _SIDES, replaces=True)
_LABELLED = ("prompt", "completion", "label")
LABELLED_ANSWERS = Format(
    _has_label, _read_labelled, frozenset({*_LABELLED, *BESIDE}), _LABELLED, replaces=True
)
