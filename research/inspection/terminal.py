"""Examples and their summary on a terminal; readable without colour, where marks stand for it."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from research.inspection.rows import Opened, Part, Row, Segment, parts
from research.inspection.summary import NEAR
from research.reports import page
from research.reports.page import Column

if TYPE_CHECKING:
    from research.text.tokenizer import Tokenizer

_BARS = "▁▂▃▄▅▆▇█"
# The end of a colour where the same begins again.
_AGAIN = re.compile("(\x1b\\[[0-9;]+m)([^\x1b]*)\x1b\\[0m\\1")
_GREEN, _MAGENTA, _DIM, _BOLD, _UNDERLINE = "1;32", "35", "2", "1", "4"
COLUMNS = [
    Column("name", "split"),
    Column("rows", "rows", tip="rows of the source"),
    Column("examples", "examples", tip="what is placed in a batch's row: rows, or windows of them"),
    Column("tokens", "tokens", format="si"),
    Column("lengths", "length", "5%, median, 95%, most", tip="tokens of an example"),
    Column("cut", "cut", "%", 100, ".1f", tip="examples of which something was cut off"),
    Column("fill", "full", "%", 100, ".1f", tip="places of packed rows that hold a token"),
    Column("trained", "trained", "%", 100, ".1f", tip="tokens that are trained on"),
    Column("epochs", "epochs", format=".2g", tip="how often the planned steps read it"),
    Column("share", "mixture", "%", 100, ".1f", tip="of the rows of every batch"),
    Column("repeated", "repeated", "+ nearly", tip="rows that are equal to an earlier one"),
    Column("shared", "in training", "+ nearly", tip="held-out rows that are trained on too"),
    Column("format", "format", tip="of the records, and how they are written"),
]


def name(summary: Mapping[str, Any]) -> str:
    """A summary's source and split."""
    return f"{summary['source']}:{summary['split']}"


def table(summaries: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], list[Column]]:
    """The summaries as a table: its rows, and those of `COLUMNS` in which there is a value."""
    rows = []
    several = sum(one["trains"] for one in summaries) > 1
    for one in summaries:
        lengths = one["lengths"]
        shown = ", ".join(f"{lengths[at]:,.0f}" for at in ("5%", "median", "95%", "largest"))
        rows.append(
            {
                "name": name(one),
                "rows": one["rows"],
                "examples": one["examples"] if one["examples"] != one["rows"] else None,
                "tokens": one["tokens"],
                "lengths": shown,
                "cut": one["truncated_share"],
                "fill": one["fill"],
                "trained": one["trained"],
                "epochs": one.get("epochs"),
                "share": one.get("share") if several else None,
                "format": one.get("format"),
                "repeated": _with_near(one, "repeated"),
                "shared": _with_near(one, "shared"),
            }
        )
    used = [c for c in COLUMNS if any(row[c.key] is not None for row in rows)]
    return rows, used


def _with_near(summary: Mapping[str, Any], key: str) -> str | None:
    if key not in summary:
        return None
    near = summary.get(f"near_{key}")
    return f"{summary[key]:,}" + ("" if near is None else f" + {near:,}")


def label_table(
    summaries: Sequence[Mapping[str, Any]],
) -> dict[str, tuple[list[dict[str, Any]], list[Column]]]:
    """Source -> its completions where they are few: how often each is in every split."""
    found: dict[str, tuple[list[dict[str, Any]], list[Column]]] = {}
    for one in summaries:
        if "labels" not in one:
            continue
        rows, columns = found.setdefault(one["source"], ([], [Column("text", "completion")]))
        split = one["split"]
        columns.append(Column(f"{split} count", split, "examples"))
        columns.append(Column(f"{split} share", split, "%", 100, ".1f"))
        by_ids = {row["ids"]: row for row in rows}
        for label in one["labels"]:
            ids = " ".join(map(str, label["ids"]))
            row = by_ids.get(ids)
            if row is None:
                row = {"text": label["text"], "ids": ids}
                rows.append(row)
            row |= {f"{split} count": label["count"], f"{split} share": label["share"]}
    return {
        source: (rows, [*columns, Column("ids", "token ids")])
        for source, (rows, columns) in found.items()
    }


def findings(summaries: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is worth a sentence beside the tables, and no reason to refuse."""
    found = []
    for one in summaries:
        if one["repeated"]:
            pairs = (f"{row} (is {first})" for row, first in one["repeated_rows"])
            found.append(
                f"{name(one)}: {one['repeated']:,} rows ({one['repeated_share']:.1%}) are equal to "
                f"an earlier one: {_rows(pairs, one['repeated'])}"
            )
        if one.get("shared"):
            pairs = (f"{row} (is {at} of {where})" for row, where, at in one["shared_rows"])
            found.append(
                f"{name(one)}: {one['shared']:,} rows ({one['shared_share']:.1%}) are trained on: "
                f"{_rows(pairs, one['shared'])}"
            )
        if one.get("near_shared"):
            near = [each for each in one["nearest"] if each[-1] >= NEAR]
            pairs = (f"{row} ({like:.0%} like {at} of {where})" for row, where, at, like in near)
            found.append(
                f"{name(one)}: {one['near_shared']:,} more rows are nearly equal to one that is "
                f"trained on (of word 5-grams, {NEAR:.0%} or more shared): "
                f"{_rows(pairs, one['near_shared'])}"
            )
        if one.get("contradictions"):
            pairs = (f"{row} (like {first})" for row, first in one["contradicting_rows"])
            found.append(
                f"{name(one)}: {one['contradictions']:,} prompts are read exactly like an earlier "
                f"one with another completion{_once_cut(one, 'contradictions')}: "
                f"{_rows(pairs, one['contradictions'])}"
            )
        if one.get("read_alike"):
            pairs = (f"{row} (like {at} of {where})" for row, where, at in one["read_alike_rows"])
            found.append(
                f"{name(one)}: {one['read_alike']:,} prompts are read exactly like one that is "
                f"trained on{_once_cut(one, 'read_alike')}: {_rows(pairs, one['read_alike'])}"
            )
        if one.get("completions") == 1 and one["examples"] > 1:
            found.append(
                f"{name(one)}: every completion is the same, so nothing is learnt from prompts"
            )
        if one["trains"] and one["epochs"] > 4:
            found.append(f"{name(one)}: read {one['epochs']:.1f} times; beyond 4, little is learnt")
        if one["truncated_share"] > 0.1:
            found.append(f"{name(one)}: {one['truncated_share']:.0%} of the examples are cut")
        if one.get("bad_lines"):
            found.append(
                f"{name(one)}: {one['bad_lines']:,} records that cannot be read are left out"
            )
        if one["empty"]:
            found.append(f"{name(one)}: {one['empty']:,} examples without a token are left out")
    for source, (labels, _) in label_table(summaries).items():
        splits = [one["split"] for one in summaries if one["source"] == source]
        unknown = [row["text"] for row in labels if f"{splits[0]} count" not in row]
        if unknown:
            found.append(f"{source}: held-out completions that are never trained: {unknown}")
    return found


def _once_cut(summary: Mapping[str, Any], key: str) -> str:
    """How many of these pairs of prompts hold one that was cut."""
    cut = summary[f"{key}_cut"]
    if not cut:
        return ""
    return ", once cut" if cut == summary[key] else f", {cut:,} of them once cut"


def _rows(pairs: Iterable[str], count: int) -> str:
    named = list(pairs)
    more = f" and {count - len(named):,} more" if count > len(named) else ""
    return f"rows {', '.join(named)}{more}"


def show_summary(opened: Opened, summaries: Sequence[Mapping[str, Any]]) -> str:
    """Tables, histograms of lengths, labels, and what the checks before training say."""
    data = opened.experiment.data
    blocks = [
        f"objective {data.objective.kind}, {data.batch_size} rows of {data.sequence_length} "
        f"tokens, {opened.experiment.steps:,} steps",
        page.text_table(*table(summaries)),
    ]
    lines = []
    width = max(len(name(one)) for one in summaries)
    for one in summaries:
        counts, edges = one["histogram"]["counts"], one["histogram"]["edges"]
        if counts:
            lines.append(f"  {name(one):{width}}  {edges[0]:>6,} {bars(counts)} {edges[-1] - 1:,}")
    blocks.append("lengths in tokens, examples of each\n" + "\n".join(lines))
    for source, labels in label_table(summaries).items():
        blocks.append(f"completions of {source}\n{page.text_table(*labels)}")
    if said := findings(summaries):
        blocks.append("worth a look\n" + "\n".join(f"  - {line}" for line in said))
    blocks.append(verdict(opened.faults))
    return "\n\n".join(blocks)


def verdict(faults: Sequence[str]) -> str:
    """What training would say of the data."""
    if not faults:
        return "checks: training would begin with this data"
    texts = (clean(fault, mark=False).replace("\n", "\n    ") for fault in faults)
    said = "\n".join(f"  - {text}" for text in texts)
    return f"checks: training would refuse this data\n{said}"


def bars(counts: Sequence[float]) -> str:
    """A histogram in one line; only 0 is blank."""
    most = max(counts)
    return "".join(_BARS[min(7, int(8 * count / most))] if count else " " for count in counts)


def clean(text: str, mark: bool = True) -> str:
    """Text that moves no cursor: control characters are spelt out, the end of a line shown."""
    shown = "".join(
        char if char.isprintable() or char == "\n" else char.encode("unicode_escape").decode()
        for char in text
    )
    return shown.replace("\n", "↵\n" if mark else "\n")


def wants_colour(stream: TextIO) -> bool:
    """Whether the stream is a terminal with colours, and nobody asked for none (no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def legend(colour: bool) -> str:
    """How trained tokens, special tokens and prefixes are shown."""
    pen = Pen(colour)
    trained = pen.trained_text("trained on") if colour else "⟦trained on⟧"
    return (
        f"{trained}  {pen.special('special token')}  {pen.prefix('sees both ways')}"
        f"{'' if colour else '‖'}  ↵ end of a line"
    )


@dataclasses.dataclass(frozen=True)
class Pen:
    """Writes with colours, or leaves text as it is, for marks around it."""

    colour: bool

    def _paint(self, codes: str, text: str) -> str:
        if not self.colour:
            return text
        # A colour ends with its line, so that it does not run into the margin.
        lines = (f"\x1b[{codes}m{line}\x1b[0m" if line else "" for line in text.split("\n"))
        return "\n".join(lines)

    def trained_text(self, text: str) -> str:
        return self._paint(_GREEN, text)

    def special(self, text: str, trained: bool = False) -> str:
        """A special token; its name alone could be text that spells it."""
        codes = f"{_GREEN};7" if trained else f"{_MAGENTA};7"
        return self._paint(codes, text) if self.colour else f"«{text}»"

    def prefix(self, text: str) -> str:
        return self._paint(_UNDERLINE, text)

    def quiet(self, text: str) -> str:
        return self._paint(_DIM, text)

    def strong(self, text: str) -> str:
        return self._paint(_BOLD, text)


def show_row(row: Row, words: Tokenizer, colour: bool = False, boundaries: bool = False) -> str:
    """A row of a batch, segment by segment."""
    pen = Pen(colour)
    adapter = f", adapter {row.adapter!r}" if row.adapter is not None else ""
    trained = sum(segment.trained for segment in row.segments)
    lines = [
        pen.strong(f"step {row.step}, row {row.number}")
        + f": {row.filled} of {row.length} places hold a token, {trained} are trained on{adapter}"
    ]
    for segment in row.segments:
        lines.append("  " + pen.quiet(describe(segment)))
        text = show_segment(segment, words, pen, boundaries)
        lines += [f"    {line}" for line in text.split("\n")]
    if row.length > row.filled:
        lines.append("  " + pen.quiet(f"padding: {row.length - row.filled} places"))
    return "\n".join(lines)


def describe(segment: Segment) -> str:
    """A segment's source, and what of it is trained on and seen."""
    start = f" from its token {segment.start}" if segment.start else ""
    positions = [unit.position for unit in segment.units if unit.position is not None]
    prefix = ""
    if segment.prefix == segment.read:
        prefix = ", all see both ways"
    elif segment.prefix:
        prefix = f", the first {segment.prefix} see both ways"
    return (
        f"segment {segment.number}: {segment.source}, row {segment.row}{start}; "
        f"{segment.read} tokens, positions {positions[0]} to {positions[-1]}, "
        f"{segment.trained} trained on{prefix}"
    )


def show_segment(segment: Segment, words: Tokenizer, pen: Pen, boundaries: bool) -> str:
    """The tokens of a segment as text."""
    shown, opened, read = "", False, 0
    ends = segment.prefix if 0 < segment.prefix < segment.read else 0
    for part in parts(segment, words):
        # What is said in place is marked token by token: each is read as another.
        if opened and not (part.trained and part.said is None):
            shown, opened = shown + "⟧", False
        if boundaries and read:
            shown += pen.quiet("│")
        if part.trained and not opened and not pen.colour:
            shown, opened = shown + "⟦", True
        shown += _piece(part, pen)
        if part.said is not None:
            shown += pen.quiet("→") + pen.trained_text(clean(part.said))
            if opened:
                shown, opened = shown + "⟧", False
        read += len(part.units)
        if read == ends and not pen.colour:
            shown += "‖"
    while shown != (shorter := _AGAIN.sub(r"\1\2", shown)):
        shown = shorter
    return shown + ("⟧" if opened else "")


def _piece(part: Part, pen: Pen) -> str:
    text = clean(part.text)
    if part.special:
        return pen.special(text, part.trained)
    if part.trained:
        return pen.trained_text(text)
    return pen.prefix(text) if part.units[0].prefix else text
