"""Rows of a JSONL file as questions of one text with their answers.

What a row says beside them is metadata and named, or it belongs to the question and is refused.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from research.data.sources import contents
from research.data.sources.formats.base import check_text, has_value
from research.data.sources.formats.unread import METADATA
from research.runtime import unique_json

SPLITS = ("train", "validation", "test")
OPTIONS = ("choices", "options", "endings")
_SPLIT_NAMES = {
    "dev": "validation",
    "valid": "validation",
    "val": "validation",
    "training": "train",
}
# What a question is asked with: without it, another question is asked.
_PARTS = frozenset(
    "system system_prompt system_message history tools functions documents images image audio "
    "context passage passages".split()
)
_MESSAGE = frozenset(("role", "content"))


class Row(dict[str, Any]):
    """A record, and where it stands."""

    def __init__(self, record: Mapping[str, Any], where: str):
        super().__init__(record)
        self.where = where


def read_splits(path: str) -> tuple[dict[str, list[Row]], list[str]]:
    """The records of each split, by `{split}` in the path, a field `split`, or all of them; and
    what was found, a sentence each.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: a line is no record, or stands on no side that is known.
    """
    if "{split}" in path:
        places = {name: Path(path.replace("{split}", name)) for name in SPLITS}
        there = {name: place for name, place in places.items() if place.is_file()}
        if not there:
            raise FileNotFoundError(f"{path}: there is none of {', '.join(SPLITS)}")
        return {name: _read_lines(place) for name, place in there.items()}, []
    rows = _read_lines(Path(path))
    if not any("split" in row for row in rows):
        return {"train": rows}, []
    splits: dict[str, list[Row]] = {}
    for row in rows:
        value = str(row.get("split")).lower()
        side = _SPLIT_NAMES.get(value, value)
        if side not in SPLITS:
            raise ValueError(
                f"{row.where}: its 'split' is {row.get('split')!r:.40}, none of "
                f"{', '.join([*SPLITS, *_SPLIT_NAMES])}, so that it is not known on which side the "
                "row stands: say it in all rows, or call the field otherwise"
            )
        splits.setdefault(side, []).append(row)
    return splits, ["the field 'split' says on which side a row stands"]


def _read_lines(path: Path) -> list[Row]:
    content = path.read_bytes()
    if problem := contents.describe(content[: contents.HEAD], "jsonl"):
        raise ValueError(f"{path}: {problem}")
    rows = []
    for number, line in enumerate(content.splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            record = unique_json.parse(line)
        except ValueError as error:
            raise ValueError(f"{where}: not a line of JSON: {error}") from None
        if not isinstance(record, dict):
            raise ValueError(f"{where}: a row is a JSON object, not {record!r:.40}")
        rows.append(Row(record, where))
    if not rows:
        raise ValueError(f"{path}: it has no rows")
    return rows


def plain_row(row: Row, question: str, answer: str) -> dict[str, Any]:
    """A record with `prompt` and `completion`, which is None where nothing answers.

    Raises:
      ValueError: one of them is no text, or the row has what it is asked with elsewhere.
    """
    _check_parts(row, {question, answer})
    prompt: Any
    if question == "messages":
        prompt, completion = _of_messages(row)
    else:
        prompt, completion = row.get(question), _as_text(row.get(answer), answer, row.where)
        if not isinstance(prompt, str) or not prompt.strip():
            raise ValueError(f"{row.where}: a row's {question!r} is no text, but {prompt!r:.60}")
        if question == "instruction" and isinstance(row.get("input"), str) and row["input"]:
            prompt = f"{prompt}\n\n{row['input']}"
    check_text(prompt, f"{row.where}: {question!r}")
    if completion is not None:
        completion = check_text(completion, f"{row.where}: {answer!r}").strip() and completion
    rest = {name: row[name] for name in (*OPTIONS, "cluster") if name in row}
    if not isinstance(rest.get("cluster", 0), str | int):
        raise ValueError(
            f"{row.where}: its 'cluster' is no name or number: {rest['cluster']!r:.60}"
        )
    if any(name in row for name in OPTIONS):  # a text, a letter or a number of them
        rest["answer"] = row.get(answer)
    return {**rest, "prompt": prompt, "completion": completion or None}


def unread_fields(rows: Sequence[Row], question: str, answer: str) -> list[str]:
    """Fields that say something and are not read: name and number of rows, as a text each."""
    known_names = {question, answer, "split", "cluster", "completion", *OPTIONS, *METADATA}
    known_names |= {"input"} if question == "instruction" else set()
    names = [name for row in rows for name in row if has_value(row[name])]
    counts = Counter(name for name in names if name not in known_names)
    return [f"{name!r} ({count:,})" for name, count in counts.items()]


def _check_parts(row: Row, known_names: set[str]) -> None:
    """Raises ValueError where what a question is asked with stands beside it."""
    names = [name for name in row if name in _PARTS - known_names and has_value(row[name])]
    if names:
        raise ValueError(
            f"{row.where}: {names[0]!r} stands beside the question and would not be asked: write "
            "it into the question, or take a --config whose template reads it"
        )


def _as_text(value: Any, name: str, where: str) -> str | None:
    if isinstance(value, list):
        raise ValueError(
            f"{where}: its {name!r} is a list. Is it one answer, write it as JSON text; are they "
            "several right ones, keep one, or take a --config: its scorers read such lists"
        )
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where}: its {name!r} is {value}, no answer")
    return value if value is None or isinstance(value, str) else str(value)


def _of_messages(row: Row) -> tuple[str, str | None]:
    """The question and the answer of a conversation of two messages, the system's in front."""
    messages = row["messages"]
    if not isinstance(messages, list) or not all(isinstance(each, dict) for each in messages):
        raise ValueError(f"{row.where}: 'messages' is no list of messages, but {messages!r:.60}")
    for message in messages:
        extra = [name for name in message if name not in _MESSAGE and has_value(message[name])]
        if extra or not isinstance(message.get("content"), str | None):
            name = extra[0] if extra else "content"
            raise ValueError(
                f"{row.where}: {name!r} of a message is not read ({message[name]!r:.60}): graft "
                "decide asks questions of one text. Leave it out, or take a --config"
            )
    texts = [(message.get("role"), message.get("content")) for message in messages]
    system = "".join(f"{text}\n\n" for role, text in texts if role == "system" and text)
    turns = [(role, text) for role, text in texts if role != "system"]
    roles = [role for role, _ in turns]
    if roles not in (["user"], ["user", "assistant"]) or not isinstance(turns[0][1], str):
        raise ValueError(
            f"{row.where}: a conversation of {', '.join(map(str, roles))}: graft decide asks "
            "questions of one text, a user's message and its answer"
        )
    return f"{system}{turns[0][1]}", turns[1][1] if len(turns) == 2 else None
