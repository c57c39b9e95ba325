"""Rows that are decided by: labels to learn from, rows to choose by, and rows for one last test.

Near duplicates never stand on two sides. What was moved or left out is said in `notes`.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from research.runtime import files
from research.text.near_duplicates import clusters
from research.text.normalize import normalize

Record = Mapping[str, Any]

# The split of all validation rows: those of the screens, in their order.
VALIDATION = "validation"

# Under so many labelled rows none are held back.
FEWEST = 30
# Texts are near duplicates from this similarity on (Jaccard, of runs of five words).
NEAR_DUPLICATE = 0.8
# Shares of the validation rows, in the order in which they are asked: screening drops between them.
SCREEN_SHARES = (0.25, 0.25, 0.5)
_SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Most rows of each kind."""

    labels: int = 1000
    validation: int = 150
    test: int = 300


@dataclasses.dataclass(frozen=True)
class Rows:
    """Rows on their sides. Each is a record with `prompt`, `completion` and `cluster`."""

    train: tuple[Record, ...]
    validation: tuple[Record, ...]
    test: tuple[Record, ...]
    # texts of the same kind without a label
    texts: tuple[str, ...]
    # what was found and done, a sentence each
    notes: tuple[str, ...]

    def screens(self) -> list[tuple[Record, ...]]:
        """The validation rows in the parts in which they are asked, each of two rows or more."""
        ends = np.round(np.cumsum((0, *SCREEN_SHARES)) * len(self.validation)).astype(int)
        if min(np.diff(ends)) < 8:  # too few to drop anything by
            return [self.validation]
        return [self.validation[a:b] for a, b in zip(ends, ends[1:], strict=False)]


def split_rows(
    splits: Mapping[str, Sequence[Record]], sizes: Sizes, has_answers: bool = True
) -> Rows:
    """Puts records on their sides; a pure function of them.

    Args:
      splits: those that there are of `train`, `validation` and `test`. A record without a label
        (`completion` is None) is a text to read; `cluster` says near duplicates where all have it.
      has_answers: whether rows have right answers; else all are asked, and nothing is learnt from
        them.

    Raises:
      ValueError: no rows with labels, or one answer for all.
    """
    if not has_answers:
        rows = [{**r, "completion": ""} for records in splits.values() for r in records]
        splits = {"test": rows}
    texts = [r["prompt"] for records in splits.values() for r in records if r["completion"] is None]
    sides = {
        name: [record for record in splits.get(name, ()) if record["completion"] is not None]
        for name in _SPLITS
    }
    if has_answers:
        _check(sides)
    notes: list[str] = []
    _add_clusters(sides, notes)
    _part_splits(sides, notes)
    if sum(map(len, sides.values())) < FEWEST:
        return _too_few(sides, texts, notes)
    _fill_splits(sides, sizes, notes)
    train, validation, test = (
        _draw(sides[name], most)
        for name, most in zip(_SPLITS, (sizes.labels, sizes.validation, sizes.test), strict=True)
    )
    used_ids = {id(record) for record in train}
    texts += [record["prompt"] for record in sides["train"] if id(record) not in used_ids]
    if len(train) < len(sides["train"]):
        notes.append(
            f"{len(train):,} of {len(sides['train']):,} rows of training are used with their "
            "labels; the others are texts without one"
        )
    held_out = {normalize(record["prompt"]) for record in (*validation, *test)}
    others = tuple(text for text in texts if normalize(text) not in held_out)
    return Rows(train, validation, test, others, tuple(notes))


def write_rows(folder: Path, rows: Rows) -> tuple[str, ...]:
    """Writes `SPLIT.jsonl` into a folder: `train`, `validation`, `test` and one for each screen.

    Returns the names of the screens, in order.
    """
    screens = {f"screen_{n}": rows for n, rows in enumerate(rows.screens(), start=1)}
    whole = {"train": rows.train, VALIDATION: rows.validation, "test": rows.test}
    for name, records in {**whole, **screens}.items():
        _write(folder / f"{name}.jsonl", records)
    _write(folder / "texts.jsonl", ({"text": text} for text in rows.texts))
    return tuple(screens)


def _write(path: Path, records: Iterable[Record]) -> None:
    lines = [json.dumps(record, ensure_ascii=False, default=_as_json) for record in records]
    files.write_if_other(path, "".join(f"{line}\n" for line in lines))


def _as_json(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is no JSON")


def _check(sides: Mapping[str, Sequence[Record]]) -> None:
    answers = Counter(r["completion"] for records in sides.values() for r in records)
    if not answers:
        raise ValueError("no row has an answer: there is nothing to choose a way by")
    if len(answers) == 1:
        raise ValueError(
            f"all {answers.total():,} rows have one answer, {next(iter(answers))!r:.60}: there is "
            "nothing to tell apart. Are labels of the others missing?"
        )


def _add_clusters(sides: dict[str, list[Record]], notes: list[str]) -> None:
    """Gives every record its cluster of near duplicates."""
    flat = [(name, record) for name in _SPLITS for record in sides[name]]
    if all("cluster" in record for _, record in flat):
        return
    texts = [record["prompt"] for _, record in flat]
    numbers = clusters(texts, NEAR_DUPLICATE)
    largest = np.bincount(numbers).max()
    what = "near duplicates"
    if largest > len(texts) / 4:  # they are written by one template
        notes.append(
            f"{largest:,} of {len(texts):,} questions are written alike, so that only equal ones "
            "count as duplicates"
        )
        numbers = np.unique([normalize(text) for text in texts], return_inverse=True)[1]
        what = "duplicates"
    count = len(set(numbers.tolist()))
    if count < len(texts):
        notes.append(
            f"{len(texts):,} questions in {count:,} clusters of {what}, each on one side of a split"
        )
    for name in _SPLITS:
        sides[name].clear()
    for (name, record), number in zip(flat, numbers.tolist(), strict=True):
        sides[name].append({**record, "cluster": number})


def _part_splits(sides: dict[str, list[Record]], notes: list[str]) -> None:
    """Leaves out of earlier splits what stands in later ones too."""
    for place, name in enumerate(_SPLITS[:-1]):
        later = [record for other in _SPLITS[place + 1 :] for record in sides[other]]
        numbers = {record["cluster"] for record in later}
        questions = {normalize(record["prompt"]) for record in later}
        rest = [
            record
            for record in sides[name]
            if record["cluster"] not in numbers and normalize(record["prompt"]) not in questions
        ]
        if count := len(sides[name]) - len(rest):
            notes.append(
                f"{count:,} of {len(sides[name]):,} rows of {name} are left out: they stand in "
                f"{' or '.join(_SPLITS[place + 1 :])} too, or nearly"
            )
        sides[name][:] = rest


def _too_few(sides: Mapping[str, list[Record]], texts: Sequence[str], notes: list[str]) -> Rows:
    rows = tuple(record for name in _SPLITS for record in sides[name])
    notes.append(
        f"{len(rows)} rows with labels are too few to learn from, to choose by and to test: all "
        "are asked, none is held back, and ways that need labels or a test are left out"
    )
    return Rows((), rows, (), tuple(texts), tuple(notes))


def _fill_splits(sides: dict[str, list[Record]], sizes: Sizes, notes: list[str]) -> None:
    """Takes from the splits that there are for those that there are not, cluster by cluster."""
    counts = {name: len(records) for name, records in sides.items() if records}
    if not sides["test"]:
        source = "train" if sides["train"] else "validation"
        share = 0.3 if source == "train" and not sides["validation"] else 0.5
        _move(sides, source, "test", min(sizes.test, round(share * len(sides[source]))))
    if not sides["validation"]:
        source = "train" if sides["train"] else "test"
        share = 0.45 if source == "train" else 0.5
        _move(sides, source, "validation", min(sizes.validation, round(share * len(sides[source]))))
    if set(counts) != {name for name in _SPLITS if sides[name]}:
        there = ", ".join(f"{count:,} of {name}" for name, count in counts.items())
        now = ", ".join(f"{len(sides[name]):,} {name}" for name in _SPLITS)
        notes.append(f"of the rows that there are ({there}), by a fixed seed: {now}")
    if not sides["train"]:
        notes.append("no row is left to learn from: ways that need labels are left out")


def _move(sides: dict[str, list[Record]], source: str, target: str, count: int) -> None:
    """Moves whole clusters until the target has so many rows."""
    members: dict[Any, list[Record]] = {}
    for record in sides[source]:
        members.setdefault(record["cluster"], []).append(record)
    names = list(members)
    for place in np.random.default_rng(0).permutation(len(names)):
        if len(sides[target]) >= count:
            break
        group = members.pop(names[place])
        sides[target] += group
    sides[source][:] = [record for group in members.values() for record in group]


def _draw(records: Sequence[Record], most: int) -> tuple[Record, ...]:
    """At most so many, in an order drawn by a fixed seed."""
    order = np.random.default_rng(1).permutation(len(records))
    return tuple(records[place] for place in order[:most])
