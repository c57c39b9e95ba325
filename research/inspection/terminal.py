"""Rows and summaries as text for a terminal; readable without color, where marks stand for it.

Styles are rich's. Without them, what is trained on stands in ⟦ ⟧, special tokens in « », and ‖ ends
a prefix that is seen both ways.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from rich.color import ColorSystem
from rich.console import Console
from rich.segment import Segment as RichSegment
from rich.style import Style
from rich.text import Text

from research.inspection.rows import Row, RunData, Segment, TokenSpan, token_spans
from research.inspection.summary import NEAR, SplitSummary
from research.reports.tables import Column, text_table
from research.runtime.terminal import printable

if TYPE_CHECKING:
    from research.text.tokenizer import Tokenizer

_BARS = "▁▂▃▄▅▆▇█"
TARGET, PREFIX = Style(color="green", bold=True), Style(underline=True)
SPECIAL, SPECIAL_TARGET = Style(color="magenta", reverse=True), TARGET + Style(reverse=True)
QUIET, STRONG = Style(dim=True), Style(bold=True)
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


Table = tuple[list[dict[str, Any]], list[Column]]


def table(summaries: Sequence[SplitSummary]) -> Table:
    """The summaries as a table: its rows, and those of `COLUMNS` in which there is a value."""
    rows = []
    is_mixture = sum(summary.trains for summary in summaries) > 1
    for summary in summaries:
        examples, plan, repeats = summary.examples, summary.plan, summary.repeats
        training = summary.training_overlap
        lengths = (f"{examples.lengths[at]:,.0f}" for at in ("5%", "median", "95%", "largest"))
        rows.append(
            {
                "name": summary.name,
                "rows": examples.rows,
                "examples": examples.examples if examples.examples != examples.rows else None,
                "tokens": examples.tokens,
                "lengths": ", ".join(lengths),
                "cut": examples.truncated_share,
                "fill": examples.fill,
                "trained": examples.trained,
                "epochs": plan.epochs if plan else None,
                "share": plan.share if plan and is_mixture else None,
                "format": plan.format if plan else None,
                "repeated": _with_near(repeats.repeated, repeats.near_repeated),
                "shared": _with_near(training.shared, training.near_shared) if training else None,
            }
        )
    used_columns = [c for c in COLUMNS if any(row[c.key] is not None for row in rows)]
    return rows, used_columns


def _with_near(count: int, near_count: int | None) -> str:
    return f"{count:,}" + ("" if near_count is None else f" + {near_count:,}")


def label_tables(summaries: Sequence[SplitSummary]) -> dict[str, Table]:
    """Source -> its completions where they are few: how often each is in every split."""
    tables: dict[str, Table] = {}
    for summary in summaries:
        if summary.labels is None:
            continue
        rows, columns = tables.setdefault(summary.source, ([], [Column("text", "completion")]))
        split = summary.split
        columns.append(Column(f"{split} count", split, "examples"))
        columns.append(Column(f"{split} share", split, "%", 100, ".1f"))
        rows_by_ids = {row["ids"]: row for row in rows}
        for label in summary.labels:
            ids = " ".join(map(str, label.ids))
            row = rows_by_ids.get(ids)
            if row is None:
                row = {"text": label.text, "ids": ids}
                rows.append(row)
            row |= {f"{split} count": label.count, f"{split} share": label.share}
    return {
        source: (rows, [*columns, Column("ids", "token ids")])
        for source, (rows, columns) in tables.items()
    }


def findings(summaries: Sequence[SplitSummary]) -> list[str]:
    """Sentences about the data that are worth a look, and no reason to refuse it."""
    sentences = []
    for summary in summaries:
        for finding in (
            *_row_findings(summary),
            *_prompt_findings(summary),
            *_usage_findings(summary),
        ):
            sentences.append(f"{summary.name}: {finding}")
    for source, (labels, _) in label_tables(summaries).items():
        splits = [summary.split for summary in summaries if summary.source == source]
        unseen = [row["text"] for row in labels if f"{splits[0]} count" not in row]
        if unseen:
            sentences.append(f"{source}: held-out completions that are never trained: {unseen}")
    return sentences


def _row_findings(summary: SplitSummary) -> Iterator[str]:
    """Rows that are equal to another one, or nearly."""
    repeats, training = summary.repeats, summary.training_overlap
    if repeats.repeated:
        pairs = [f"{row} (is {earlier})" for row, earlier in repeats.repeated_rows]
        yield (
            f"{repeats.repeated:,} rows ({repeats.repeated_share:.1%}) are equal to an earlier "
            f"one: {_list_rows(pairs, repeats.repeated)}"
        )
    if training and training.shared:
        pairs = [f"{row} (is {other} of {name})" for row, name, other in training.shared_rows]
        yield (
            f"{training.shared:,} rows ({training.shared_share:.1%}) are trained on: "
            f"{_list_rows(pairs, training.shared)}"
        )
    if training and training.near_shared:
        pairs = [
            f"{row} ({similarity:.0%} like {other} of {name})"
            for row, name, other, similarity in training.nearest or ()
            if similarity >= NEAR
        ]
        yield (
            f"{training.near_shared:,} more rows are nearly equal to one that is trained on (of "
            f"word 5-grams, {NEAR:.0%} or more shared): {_list_rows(pairs, training.near_shared)}"
        )


def _prompt_findings(summary: SplitSummary) -> Iterator[str]:
    """Prompts that are read alike, and completions that are all the same."""
    completions, overlap = summary.completions, summary.prompt_overlap
    if completions and completions.contradictions:
        pairs = [f"{row} (like {earlier})" for row, earlier in completions.contradicting_rows]
        note = _once_cut(completions.contradictions, completions.contradictions_cut)
        yield (
            f"{completions.contradictions:,} prompts are read exactly like an earlier one with "
            f"another completion{note}: {_list_rows(pairs, completions.contradictions)}"
        )
    if overlap and overlap.read_alike:
        pairs = [f"{row} (like {other} of {name})" for row, name, other in overlap.read_alike_rows]
        note = _once_cut(overlap.read_alike, overlap.read_alike_cut)
        yield (
            f"{overlap.read_alike:,} prompts are read exactly like one that is trained on{note}: "
            f"{_list_rows(pairs, overlap.read_alike)}"
        )
    if completions and completions.completions == 1 and summary.examples.examples > 1:
        yield "every completion is the same, so nothing is learnt from prompts"


def _usage_findings(summary: SplitSummary) -> Iterator[str]:
    """Examples that are read too often, cut or left out."""
    examples, plan = summary.examples, summary.plan
    if plan and plan.epochs > 4:
        yield f"read {plan.epochs:.1f} times; beyond 4, little is learnt"
    if examples.truncated_share > 0.1:
        yield f"{examples.truncated_share:.0%} of the examples are cut"
    if plan and plan.bad_lines:
        yield f"{plan.bad_lines:,} records that cannot be read are left out"
    if examples.empty:
        yield f"{examples.empty:,} examples without a token are left out"


def _once_cut(count: int, cut_count: int) -> str:
    """Clause with the number of pairs of prompts in which one was cut."""
    if not cut_count:
        return ""
    return ", once cut" if cut_count == count else f", {cut_count:,} of them once cut"


def _list_rows(pairs: Sequence[str], count: int) -> str:
    more = f" and {count - len(pairs):,} more" if count > len(pairs) else ""
    return f"rows {', '.join(pairs)}{more}"


def show_summary(data: RunData, summaries: Sequence[SplitSummary]) -> str:
    """Tables, histograms of lengths, labels, and what the checks before training say."""
    config = data.experiment.data
    blocks = [
        f"objective {config.objective.kind}, {config.batch_size} rows of {config.sequence_length} "
        f"tokens, {data.experiment.steps:,} steps",
        text_table(*table(summaries)),
    ]
    lines = []
    width = max(len(summary.name) for summary in summaries)
    for summary in summaries:
        edges, counts = summary.examples.histogram.edges, summary.examples.histogram.counts
        if counts:
            bars = histogram_bars(counts)
            lines.append(f"  {summary.name:{width}}  {edges[0]:>6,} {bars} {edges[-1] - 1:,}")
    blocks.append("lengths in tokens, examples of each\n" + "\n".join(lines))
    for source, labels in label_tables(summaries).items():
        blocks.append(f"completions of {source}\n{text_table(*labels)}")
    if sentences := findings(summaries):
        blocks.append("worth a look\n" + "\n".join(f"  - {line}" for line in sentences))
    blocks.append(verdict(data.faults))
    return printable("\n\n".join(blocks))


def verdict(faults: Sequence[str]) -> str:
    """Sentence and faults that training would print about the data."""
    if not faults:
        return "checks: training would begin with this data"
    texts = (clean(fault, mark_lines=False).replace("\n", "\n    ") for fault in faults)
    lines = "\n".join(f"  - {text}" for text in texts)
    return f"checks: training would refuse this data\n{lines}"


def histogram_bars(counts: Sequence[float]) -> str:
    """A histogram in one line; only 0 is blank."""
    highest = max(counts)
    return "".join(_BARS[min(7, int(8 * count / highest))] if count else " " for count in counts)


def clean(text: str, mark_lines: bool = True) -> str:
    """Text in which all that cannot be seen is spelt out, for whoever studies it; `printable`
    leaves what a terminal does not obey, such as joiners."""
    printable = "".join(
        char if char.isprintable() or char == "\n" else char.encode("unicode_escape").decode()
        for char in text
    )
    return printable.replace("\n", "↵\n") if mark_lines else printable


def supports_color(stream: TextIO) -> bool:
    """Whether the stream is a terminal with colors, and nobody asked for none (no-color.org)."""
    console = Console(file=stream)
    return stream.isatty() and console.color_system is not None and not console.no_color


def legend(color: bool) -> str:
    """Legend of trained tokens, special tokens and prefixes."""
    text = Text()
    text.append("trained on" if color else "⟦trained on⟧", TARGET)
    text.append("  ")
    text.append("special token" if color else "«special token»", SPECIAL)
    text.append("  ")
    text.append("sees both ways", PREFIX)
    text.append("  ↵ end of a line" if color else "‖  ↵ end of a line")
    return _to_string(text, color)


def show_row(row: Row, tokenizer: Tokenizer, color: bool = False, boundaries: bool = False) -> str:
    """A row of a batch, segment by segment.

    Args:
      row: what is shown.
      tokenizer: spells its tokens.
      color: whether styles, not marks, show what is trained on, special or a prefix.
      boundaries: whether a line stands between tokens.
    """
    adapter = f", adapter {row.adapter!r}" if row.adapter is not None else ""
    counts = (
        f": {row.input_count} of {row.length} places hold a token, {row.target_count} are trained "
        f"on{adapter}"
    )
    lines = [Text.assemble((f"step {row.step}, row {row.number}", STRONG), counts)]
    for segment in row.segments:
        lines.append(Text.assemble("  ", (printable(describe(segment)), QUIET)))
        text = _segment_text(segment, tokenizer, color, boundaries)
        for line in text.split("\n", allow_blank=True):
            lines.append(Text.assemble("    ", line))
    if row.length > row.input_count:
        padding = f"padding: {row.length - row.input_count} places"
        lines.append(Text.assemble("  ", (padding, QUIET)))
    return "\n".join(_to_string(line, color) for line in lines)


def describe(segment: Segment) -> str:
    """A segment's source, and how many of its tokens are inputs, targets and a prefix."""
    start = f" from its token {segment.start}" if segment.start else ""
    positions = [token.position for token in segment.tokens if token.position is not None]
    prefix = ""
    if segment.prefix_count == segment.input_count:
        prefix = ", all see both ways"
    elif segment.prefix_count:
        prefix = f", the first {segment.prefix_count} see both ways"
    return (
        f"segment {segment.number}: {segment.source}, row {segment.row}{start}; "
        f"{segment.input_count} tokens, positions {positions[0]} to {positions[-1]}, "
        f"{segment.target_count} trained on{prefix}"
    )


def _segment_text(segment: Segment, tokenizer: Tokenizer, color: bool, boundaries: bool) -> Text:
    """The tokens of a segment, with styles, and with marks where there is no color."""
    text, is_open, count = Text(), False, 0
    has_inner_prefix = 0 < segment.prefix_count < segment.input_count
    for span in token_spans(segment, tokenizer):
        # What is predicted in place is marked token by token: each is read as another.
        if is_open and not (span.is_target and span.target_text is None):
            text.append("⟧")
            is_open = False
        if boundaries and count:
            text.append("│", QUIET)
        if span.is_target and not is_open and not color:
            text.append("⟦")
            is_open = True
        _append_span(text, span, color)
        if span.target_text is not None:
            text.append("→", QUIET)
            text.append(clean(span.target_text), TARGET)
            if is_open:
                text.append("⟧")
                is_open = False
        count += len(span.tokens)
        if has_inner_prefix and count == segment.prefix_count and not color:
            text.append("‖")
    if is_open:
        text.append("⟧")
    return text


def _append_span(text: Text, span: TokenSpan, color: bool) -> None:
    spelling = clean(span.text)
    if span.is_special:
        # Its name alone could be text that spells it.
        mark = spelling if color else f"«{spelling}»"
        text.append(mark, SPECIAL_TARGET if span.is_target else SPECIAL)
    elif span.is_target:
        text.append(spelling, TARGET)
    else:
        text.append(spelling, PREFIX if span.tokens[0].in_prefix else None)


def _to_string(line: Text, color: bool) -> str:
    """A line with the codes of its styles, or without; a style ends with its line."""
    if not color:
        return line.plain
    parts = RichSegment.simplify(line.render(Console(color_system="standard")))
    return "".join(
        part.style.render(part.text, color_system=ColorSystem.STANDARD) if part.style else part.text
        for part in parts
    )
