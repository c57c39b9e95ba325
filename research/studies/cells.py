"""Cells of a study: the lines of its table, and how a claim names some of them.

A cell is a form at one point of the axes, `lora rank=4 steps=100`. A claim names it whole or by
some of its parts: `lora` means that form at every point, `rank=4` that point of every form.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from research.config.suggestions import suggestion

# what a name leaves out of a cell's parts
Rest = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Cell:
    """A line of a study's table: a form at one point of the axes."""

    form: str
    # which point of the axes, and its values
    number: int
    point: Mapping[str, Any] = dataclasses.field(compare=False)

    @property
    def parts(self) -> tuple[str, ...]:
        """What its name consists of: the form, then `key=value` for each axis."""
        values = [f"{key.rpartition('.')[2]}={_short(value)}" for key, value in self.point.items()]
        return (*([self.form] if self.form else []), *values)

    @property
    def label(self) -> str:
        """Its name in tables and progress: `lora rank=4`."""
        return " ".join(self.parts) or "all"


class Pair(NamedTuple):
    """Two cells that a claim compares, and the parts that they share."""

    label: str
    first: Cell
    second: Cell


def match(name: str, cells: Sequence[Cell]) -> dict[Rest, Cell]:
    """The cells that a name means, by the parts that it leaves out; all of them for an empty name.

    Raises:
      ValueError: no cell is called so; says what there is.
    """
    matches = {rest: cell for cell in cells for rest in _rests(name, cell)}
    if not matches:
        parts = dict.fromkeys(part for cell in cells for part in (*cell.parts, cell.label))
        raise ValueError(
            f"a comparison names {name!r}, which no form, point or cell is called"
            f"{suggestion(name, parts)}"
        )
    return matches


def pairs(first: str, second: str, cells: Sequence[Cell]) -> list[Pair]:
    """The pairs of cells that two names mean: those that have the parts left out in common.

    Where the second name means one cell alone, all that the first one means are compared with it.

    Raises:
      ValueError: a name that no cell has, or names that mean no pair.
    """
    firsts, seconds = match(first, cells), match(second, cells)
    if len(seconds) == 1 and set(firsts) != set(seconds):
        (reference,) = seconds.values()
        matches = [
            Pair(" ".join(rest), cell, reference)
            for rest, cell in firsts.items()
            if cell != reference
        ]
    else:
        matches = [
            Pair(" ".join(rest), cell, seconds[rest])
            for rest, cell in firsts.items()
            if rest in seconds and cell != seconds[rest]
        ]
    if not matches:
        raise ValueError(f"a comparison of {first!r} and {second!r} has no two cells to compare")
    return matches


def lines_along(key: str, cells: Sequence[Cell]) -> dict[str, list[tuple[float, Cell]]]:
    """Cells that differ in one axis, line by line, where its values are positive numbers.

    Returns what a line's cells have in common -> (number on the axis, cell), rising. Axes that go
    together with this one (`zipped`) part no lines.
    """
    numbered = [cell for cell in cells if _is_positive(cell.point.get(key))]
    values_at: dict[tuple[str, Any], set[str]] = {}
    for cell in numbered:
        for other, value in cell.point.items():
            values_at.setdefault((other, cell.point[key]), set()).add(_short(value))
    free_keys = {other for (other, _), values in values_at.items() if len(values) > 1}
    lines: dict[str, list[tuple[float, Cell]]] = {}
    for cell in numbered:
        others = {name: value for name, value in cell.point.items() if name in free_keys}
        label = " ".join(Cell(cell.form, 0, others).parts)
        lines.setdefault(label, []).append((float(cell.point[key]), cell))
    return {label: sorted(line, key=lambda point: point[0]) for label, line in lines.items()}


def _is_positive(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and 0 < value < math.inf


def _rests(name: str, cell: Cell) -> Iterator[Rest]:
    """The parts of a cell that a name leaves out, if it is one of the cell."""
    places = range(len(cell.parts))
    for count in range(len(cell.parts) + 1):
        for chosen_places in itertools.combinations(places, count):
            if " ".join(cell.parts[place] for place in chosen_places) == name:
                yield tuple(cell.parts[place] for place in places if place not in chosen_places)
    if not cell.parts and name == cell.label:
        yield ()


def _short(value: Any) -> str:
    """A value as a label has it: `lora,rank=4` for a mapping with a kind."""
    if isinstance(value, Mapping):
        parts = [str(v) if k == "kind" else f"{k}={_short(v)}" for k, v in value.items()]
        return ",".join(parts)
    if isinstance(value, list | tuple):
        return "+".join(map(_short, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
