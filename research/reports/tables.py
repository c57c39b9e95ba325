"""Tables from rows of dicts, as HTML or as aligned Markdown.

rows = [{"run": "LoRA", "quality": proportion_interval(correct)}]
columns = [Column("run", "run"), Column("quality", "quality", "%", scale=100, format=".1f")]
print(text_table(rows, columns))
"""

from __future__ import annotations

import itertools
import numbers
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from markupsafe import Markup

from research.reports.markup import render
from research.reports.statistics import Estimate, PairedDifference
from research.runtime.terminal import printable

__all__ = ["Column", "fitted_table", "format_si", "table", "text_table"]

_MISSING = "–"


@dataclass(frozen=True)
class Column:
    """One column of a table.

    key: of the rows' dicts. header, unit: printed as "header" over "(unit)".
    scale: what values are multiplied by first, for example 100 for percent.
    format: a format spec for numbers, or "si" for 4.5M; empty for three digits or whole numbers.
    tip: a longer explanation, shown when the pointer rests on the header.
    group: columns next to each other with one group share a heading.
    """

    key: str
    header: str
    unit: str = ""
    scale: float = 1.0
    format: str = ""
    tip: str = ""
    group: str = ""


class _Cell(NamedTuple):
    """One cell of an HTML table: a text, for an estimate its interval, and a tip."""

    text: str
    interval: str = ""
    tip: str = ""
    missing: bool = False


def table(
    rows: Sequence[Mapping[str, Any]],
    columns: Sequence[Column] | None = None,
    caption: str = "",
    by: str = "",
) -> Markup:
    """Rows of dicts as an HTML table; a missing or None value prints as a dash.

    columns: which keys, in order; by default every key of the rows under its own name.
    by: a key that groups consecutive rows under a heading of their own.

    Raises:
      ValueError: a column that no row has.
    """
    columns = _resolve_columns(rows, columns)
    groups = []
    if any(column.group for column in columns):
        for name, members in itertools.groupby(columns, key=lambda column: column.group):
            groups.append((name, len(list(members))))
    return render(
        "table.html",
        columns=columns,
        groups=groups,
        numeric=[_is_numeric(rows, column) for column in columns],
        rows=list(_html_rows(rows, columns, by)),
        caption=caption,
    )


def text_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[Column] | None = None) -> str:
    """The same table in aligned Markdown, for a terminal or a README."""
    columns = _resolve_columns(rows, columns)
    lines = [[f"{c.header} ({c.unit})" if c.unit else c.header for c in columns]]
    lines += [[_format_value(row.get(c.key), c) for c in columns] for row in rows]
    lines = [
        [printable(_escape_bars(cell).replace("\n", " "), lines=False) for cell in line]
        for line in lines
    ]
    widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(columns))]
    right = [_is_numeric(rows, column) for column in columns]
    rule = ["-" * (w - 1) + (":" if r else "-") for w, r in zip(widths, right, strict=True)]
    aligned_lines = []
    for line in [lines[0], rule, *lines[1:]]:
        cells = zip(line, widths, right, strict=True)
        aligned_lines.append(" | ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in cells))
    return "\n".join(f"| {line} |" for line in aligned_lines)


def _escape_bars(cell: str) -> str:
    """A cell whose bars are no edges; a backslash before one would escape our own."""
    return re.sub(r"(\\*)\|", r"\1\1\\|", cell)


def fitted_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[Column], width: int) -> str:
    """The table for a terminal of `width` columns, with units under the headers.

    An interval that is as wide on both sides is written `0.31 ±0.05`. Columns that have no room go
    below, in tables of their own that begin with the first column again.
    """
    columns = _resolve_columns(rows, columns)
    blocks = []
    for column in columns:
        cells = [column.header, f"({column.unit})" if column.unit else ""]
        cells += [_short_value(row.get(column.key), column) for row in rows]
        cells = [printable(cell, lines=False) for cell in cells]
        size = max(map(len, cells))
        right = _is_numeric(rows, column)
        blocks.append([cell.rjust(size) if right else cell.ljust(size) for cell in cells])
    first, *others = blocks
    tables = [[first]]
    for block in others:
        width_so_far = sum(len(each[0]) + 2 for each in tables[-1])
        if width_so_far + len(block[0]) > width and len(tables[-1]) > 1:
            tables.append([first])
        tables[-1].append(block)
    texts = []
    for blocks_of_table in tables:
        lines = ["  ".join(cells).rstrip() for cells in zip(*blocks_of_table, strict=True)]
        head = lines[:2] if lines[1] else lines[:1]
        texts.append("\n".join([*head, "-" * max(map(len, lines)), *lines[2:]]))
    return "\n\n".join(texts)


def _short_value(value: Any, column: Column) -> str:
    if isinstance(value, Estimate) and column.format != "si":
        scaled = value.scaled(column.scale)
        number, low, high = scaled.value, scaled.low, scaled.high
        if abs((high - number) - (number - low)) <= 1e-6 * (high - low):
            spec = column.format or ".3g"
            return f"{number + 0.0:{spec}} ±{high - number:{spec.lstrip('+')}}"
    return _format_value(value, column)


def format_si(number: float) -> str:
    """Three digits and a letter for thousands and up: 1.23k, 4.5M, 6G, 7T, 8P, 9E."""
    for power, letter in ((18, "E"), (15, "P"), (12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if abs(number) >= 0.9995 * 10**power:
            return f"{number / 10**power:.3g}{letter}"
    return f"{number:.3g}"


def _resolve_columns(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[Column] | None
) -> Sequence[Column]:
    keys = list(dict.fromkeys(key for row in rows for key in row))
    if columns is None:
        return [Column(key, key) for key in keys]
    missing = [column.key for column in columns if column.key not in keys]
    if rows and missing:
        raise ValueError(f"no row has the column {missing[0]!r}; the rows' keys are {keys}")
    return columns


def _html_rows(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[Column], by: str
) -> Iterator[tuple[str | None, list[_Cell]]]:
    """(heading above the row, or None; the row's cells)."""
    group = None
    for row in rows:
        heading = None
        if by and row.get(by) != group:
            group = row.get(by)
            heading = str(group or "")
        yield heading, [_cell(row.get(column.key), column) for column in columns]


def _cell(value: Any, column: Column) -> _Cell:
    text = value if isinstance(value, Markup) else _format_value(value, column)
    if isinstance(value, (Estimate, PairedDifference)):
        number, _, interval = text.replace("-", "−").partition(" ")
        tip = f"p = {value.p_value:.2g}" if isinstance(value, PairedDifference) else ""
        return _Cell(number, interval, tip)
    return _Cell(text, missing=value is None)


def _is_numeric(rows: Sequence[Mapping[str, Any]], column: Column) -> bool:
    values = [row[column.key] for row in rows if row.get(column.key) is not None]
    kinds = (numbers.Number, Estimate, PairedDifference)
    return bool(values) and all(isinstance(value, kinds) for value in values)


def _format_value(value: Any, column: Column) -> str:
    """A value as plain text, in the column's unit and format."""
    if value is None:
        return _MISSING
    if isinstance(value, bool) or not isinstance(
        value, (numbers.Number, Estimate, PairedDifference)
    ):
        return str(value)
    if isinstance(value, PairedDifference):
        value = value.difference
    if isinstance(value, Estimate):
        value = value.scaled(column.scale)
        if column.format == "si":
            return f"{format_si(value.value)} [{format_si(value.low)}, {format_si(value.high)}]"
        return format(value, column.format)
    if column.scale != 1:
        value = value * column.scale
    if column.format:
        return format_si(value) if column.format == "si" else format(value, column.format)
    if isinstance(value, numbers.Integral):
        return f"{value:,}"
    # Three digits, but never an exponent for everyday sizes.
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.3g}"
