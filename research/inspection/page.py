"""Examples and their summary as one page: what `terminal` prints, to be passed around.

The page is `research.reports.page`'s: it makes no request, runs no script and escapes every text.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from markupsafe import Markup

from research.config import schema
from research.inspection import terminal
from research.inspection.rows import Row, RunData, Segment, token_spans
from research.inspection.summary import SplitSummary
from research.reports import page
from research.reports.markup import render
from research.reports.tables import table

if TYPE_CHECKING:
    from research.text.tokenizer import Tokenizer

# Size of a histogram's bars, in the units of its view box.
_PLOT_WIDTH, _PLOT_HEIGHT, _BASELINE = 240, 70, 76


class _Strip(NamedTuple):
    """A stretch of a row, drawn as a bar: a document, or places that are trained on."""

    kind: str
    start: int
    width: int


class _Span(NamedTuple):
    """Tokens that are shown as one, as a `<span>`; target: what is predicted in their place."""

    kind: str
    tip: str
    text: Markup
    target: Markup | None


class _Bar(NamedTuple):
    """One bar of a histogram, in units of its view box."""

    x: str
    y: str
    width: str
    height: str
    tip: str


def write(
    path: str | os.PathLike[str],
    data: RunData,
    rows: Sequence[Row],
    summaries: Sequence[SplitSummary],
    config_name: str,
) -> Path:
    """Write the page, whole or not at all.

    Args:
      path: a file.
      data: the run's data.
      rows: what is shown as the model sees it.
      summaries: from `summarize`.
      config_name: of the run, for the title.
    """
    config = data.experiment.data
    return page.write(
        path,
        f"What a run of {config_name} reads",
        page.section("Checks", _checks(data.faults, terminal.findings(summaries))),
        page.section(
            "As the model sees it",
            f"Rows of {config.sequence_length} tokens, objective {config.objective.kind}. The bar "
            "above a row shows its documents, green where it is trained on, and padding; rest on a "
            "token to see its number and position.",
            _rows(rows, data.tokenizer),
        ),
        page.section("Sources and splits", table(*terminal.table(summaries))),
        page.section("Lengths in tokens", _histograms(summaries, config.sequence_length)),
        *[
            page.section(f"Completions of {source}", table(*labels))
            for source, labels in terminal.label_tables(summaries).items()
        ],
        finding=_finding(data.faults, summaries),
        provenance={"config": schema.to_dict(data.experiment)},
        stylesheet="inspection/style.css",
    )


def _finding(faults: Sequence[str], summaries: Sequence[SplitSummary]) -> str:
    """The page in a sentence."""
    if faults:
        reasons = "one reason" if len(faults) == 1 else f"{len(faults)} reasons"
        return f"Training would refuse this data, for {reasons}."
    training = [summary for summary in summaries if summary.trains]
    rows = sum(summary.examples.rows for summary in training)
    tokens = sum(summary.examples.tokens for summary in training)
    targets = sum(summary.examples.trained * summary.examples.tokens for summary in training)
    share = targets / max(1, tokens)
    return f"{rows:,} rows of {tokens:,} tokens, of which {share:.1%} are trained on."


def _checks(faults: Sequence[str], findings: Sequence[str]) -> Markup:
    """What refuses the data, and what is worth a look."""
    return render(
        "inspection/checks.html",
        faults=[terminal.clean(fault, mark_lines=False) for fault in faults],
        findings=[terminal.clean(finding, mark_lines=False) for finding in findings],
    )


def _rows(rows: Sequence[Row], tokenizer: Tokenizer) -> Markup:
    """Rows of batches, under a legend and a switch for the edges of tokens."""
    return render("inspection/rows.html", rows=[_row_values(row, tokenizer) for row in rows])


def _row_values(row: Row, tokenizer: Tokenizer) -> dict[str, Any]:
    """What the template shows of a row."""
    return {
        "step": row.step,
        "number": row.number,
        "length": row.length,
        "input_count": row.input_count,
        "target_count": row.target_count,
        "adapter": row.adapter,
        "bars": list(_strips(row)),
        "segments": [
            {"title": terminal.describe(segment), "tokens": list(_spans(segment, tokenizer))}
            for segment in row.segments
        ],
    }


def _strips(row: Row) -> Iterator[_Strip]:
    """The row in proportion: its documents, and their trained places; what is left is padding."""
    for number, segment in enumerate(row.segments):
        start = min(token.index for token in segment.tokens if token.index is not None)
        yield _Strip(f"d{number % 2}", start, segment.input_count)
        # A place is trained where it predicts a target: the next token, or its own.
        places = [
            (token.index if segment.in_place else before.index) or 0
            for before, token in zip(
                segment.tokens[:1] + segment.tokens, segment.tokens, strict=False
            )
            if token.is_target
        ]
        for _, members in itertools.groupby(enumerate(places), lambda each: each[1] - each[0]):
            run = [place for _, place in members]
            yield _Strip("on", run[0], len(run))


def _spans(segment: Segment, tokenizer: Tokenizer) -> Iterator[_Span]:
    """The tokens of a segment; those that share a character are one span."""
    for span in token_spans(segment, tokenizer):
        first = span.tokens[0]
        kinds = (("t", span.is_target), ("s", span.is_special), ("p", first.in_prefix))
        ids = " ".join(str(token.id) for token in span.tokens)
        place = "not read" if first.position is None else f"position {first.position}"
        yield _Span(
            kind=" ".join(name for name, holds in kinds if holds),
            tip=f"id {ids}, {place}",
            text=_token_markup(span.text),
            target=None if span.target_text is None else _token_markup(span.target_text),
        )


def _token_markup(text: str) -> Markup:
    return Markup.escape(terminal.clean(text)).replace("↵", Markup("<b>↵</b>"))


def _histograms(summaries: Sequence[SplitSummary], length: int) -> Markup:
    """A small histogram of lengths for each split that has examples."""
    return render(
        "inspection/lengths.html",
        histograms=[
            _histogram_values(summary, length)
            for summary in summaries
            if summary.examples.histogram.counts
        ],
    )


def _histogram_values(summary: SplitSummary, length: int) -> dict[str, Any]:
    """What the template shows of a split's lengths."""
    examples = summary.examples
    edges, counts = examples.histogram.edges, examples.histogram.counts
    return {
        "title": summary.name,
        "shortest": edges[0],
        "longest": edges[-1] - 1,
        "median": examples.lengths["median"],
        "bars": list(_bars(edges, counts)),
        "caption": f"{examples.truncated:,} of {examples.examples:,} examples cut to fit "
        f"{length:,}, {examples.fill:.1%} of places filled",
    }


def _bars(edges: Sequence[int], counts: Sequence[int]) -> Iterator[_Bar]:
    """A histogram's bars: the highest has the height of the plot, and only 0 has none."""
    step = _PLOT_WIDTH / len(counts)
    for number, count in enumerate(counts):
        low, high = edges[number], edges[number + 1] - 1
        height = max(1.0, _PLOT_HEIGHT * count / max(counts)) if count else 0
        lengths = f"{low:,}" if low == high else f"{low:,} to {high:,}"
        yield _Bar(
            x=f"{number * step:.2f}",
            y=f"{_BASELINE - height:.1f}",
            width=f"{max(1, step - 1):.2f}",
            height=f"{height:.1f}",
            tip=f"{lengths} tokens: {count:,} examples",
        )
