"""Examples and their summary as one page: what `inspection_text` shows, to be passed around.

The page is `research.reports.page`'s: it asks for nothing, runs no script and escapes every text.
"""

from __future__ import annotations

import html
import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from research.config import schema
from research.inspection import terminal as text
from research.inspection.rows import Opened, Row, Segment, parts
from research.reports import page
from research.reports.page import Html

if TYPE_CHECKING:
    from research.text.tokenizer import Tokenizer


def write(
    path: str | os.PathLike[str],
    opened: Opened,
    rows: Sequence[Row],
    summaries: Sequence[Mapping[str, Any]],
    config: str,
) -> Path:
    """Writes the page, whole or not at all.

    Args:
      path: a file.
      opened: the data.
      rows: what is shown as the model sees it.
      summaries: from `inspection_summary.summarise`.
      config: what the run's config is called.
    """
    data = opened.experiment.data
    return page.write(
        path,
        f"What a run of {config} reads",
        page.section("Checks", _checks(opened.faults, text.findings(summaries))),
        page.section(
            "As the model sees it",
            f"Rows of {data.sequence_length} tokens, objective {data.objective.kind}. The bar "
            "above a row shows its documents, green where it is trained on, and padding; rest on a "
            "token to see its number and position.",
            _rows(rows, opened.tokenizer),
        ),
        page.section("Sources and splits", page.table(*text.table(summaries))),
        page.section("Lengths in tokens", _histograms(summaries, data.sequence_length)),
        *[
            page.section(f"Completions of {source}", page.table(*labels))
            for source, labels in text.label_table(summaries).items()
        ],
        finding=_finding(opened.faults, summaries),
        provenance={"config": schema.to_dict(opened.experiment)},
        style=STYLE,
    )


def _finding(faults: Sequence[str], summaries: Sequence[Mapping[str, Any]]) -> str:
    """The page in a sentence."""
    trains = [one for one in summaries if one["trains"]]
    rows, tokens = (sum(one[what] for one in trains) for what in ("rows", "tokens"))
    said = sum(one["trained"] * one["tokens"] for one in trains) / max(1, tokens)
    if faults:
        times = "one reason" if len(faults) == 1 else f"{len(faults)} reasons"
        return f"Training would refuse this data, for {times}."
    return f"{rows:,} rows of {tokens:,} tokens, of which {said:.1%} are trained on."


def _checks(faults: Sequence[str], findings: Sequence[str]) -> Html:
    """What refuses the data, and what is worth a look."""
    items = [f"<li class=fault>{html.escape(text.clean(f, mark=False))}</li>" for f in faults]
    items += [f"<li>{html.escape(text.clean(f, mark=False))}</li>" for f in findings]
    if not faults:
        items.insert(0, "<li class=well>Training would begin with this data.</li>")
    return Html(f"<ul class=checks>{''.join(items)}</ul>")


def _rows(rows: Sequence[Row], words: Tokenizer) -> Html:
    """Rows of batches, under a legend and a switch for the edges of tokens."""
    legend = (
        "<input type=checkbox id=edges><p class=legend><label for=edges>edges of tokens</label>"
        "<span class=t>trained on</span><span class=s>special token</span>"
        "<span class=p>sees both ways</span></p>"
    )
    return Html(f"<div class=seen>{legend}{''.join(_row(row, words) for row in rows)}</div>")


def _row(row: Row, words: Tokenizer) -> str:
    trained = sum(segment.trained for segment in row.segments)
    adapter = f", adapter {html.escape(row.adapter)}" if row.adapter is not None else ""
    parts = "".join(
        f"<h4>{html.escape(text.describe(segment))}</h4>"
        f"<pre tabindex=0>{_segment(segment, words)}</pre>"
        for segment in row.segments
    )
    return (
        f"<article><h3>Step {row.step}, row {row.number}<small>{row.filled} of {row.length} places "
        f"hold a token, {trained} trained on{adapter}</small></h3>{_strip(row)}{parts}</article>"
    )


def _strip(row: Row) -> str:
    """The row in proportion: its documents, their trained places, what is padding."""
    bars = ""
    for number, segment in enumerate(row.segments):
        at = min(unit.place for unit in segment.units if unit.place is not None)
        bars += f'<rect class=d{number % 2} x="{at}" width="{segment.read}" height="10"/>'
        # A place is trained where it says a trained token: the one before, or its own.
        places = [
            (unit.place if segment.in_place else before.place) or 0
            for before, unit in zip(segment.units[:1] + segment.units, segment.units, strict=False)
            if unit.trained
        ]
        for _, run in itertools.groupby(enumerate(places), lambda each: each[1] - each[0]):
            _, stretch = zip(*run, strict=True)
            bars += f'<rect class=on x="{stretch[0]}" width="{len(stretch)}" height="10"/>'
    return (
        f'<svg class=strip viewBox="0 0 {row.length} 10" preserveAspectRatio="none" role="img" '
        f'aria-label="{row.filled} of {row.length} places hold a token">{bars}</svg>'
    )


def _segment(segment: Segment, words: Tokenizer) -> str:
    """Tokens as spans; those that share a character are one."""
    shown = ""
    for part in parts(segment, words):
        first = part.units[0]
        kinds = (("t", part.trained), ("s", part.special), ("p", first.prefix))
        kind = " ".join(name for name, holds in kinds if holds)
        named = f' class="{kind}"' if kind else ""
        ids = " ".join(str(unit.id) for unit in part.units)
        where = "not read" if first.position is None else f"position {first.position}"
        shown += f'<span{named} title="id {ids}, {where}">{_escaped(part.text)}</span>'
        if part.said is not None:
            shown += f"<i class=t>{_escaped(part.said)}</i>"
    return shown


def _escaped(spelt: str) -> str:
    return html.escape(text.clean(spelt)).replace("↵", "<b>↵</b>")


def _histograms(summaries: Sequence[Mapping[str, Any]], length: int) -> Html:
    """A small histogram for each split."""
    return Html(f"<div class=lengths>{''.join(_histogram(one, length) for one in summaries)}</div>")


def _histogram(summary: Mapping[str, Any], length: int) -> str:
    edges, counts = summary["histogram"]["edges"], summary["histogram"]["counts"]
    if not counts:
        return ""
    most, width = max(counts), 240 / len(counts)
    bars = ""
    for number, count in enumerate(counts):
        low, high = edges[number], edges[number + 1] - 1
        tall = max(1.0, 70 * count / most) if count else 0
        of = f"{low:,}" if low == high else f"{low:,} to {high:,}"
        bars += (
            f'<rect x="{number * width:.2f}" y="{76 - tall:.1f}" width="{max(1, width - 1):.2f}" '
            f'height="{tall:.1f}"><title>{of} tokens: {count:,} examples</title></rect>'
        )
    median = summary["lengths"]["median"]
    return (
        f"<figure><h4>{html.escape(text.name(summary))}</h4>"
        f'<svg viewBox="0 0 240 92" role="img" aria-label="lengths from {edges[0]} to '
        f'{edges[-1] - 1} tokens, median {median:g}">{bars}<line x1="0" y1="76.5" x2="240" '
        f'y2="76.5"/><text x="0" y="89">{edges[0]:,}</text><text x="120" y="89" '
        f'text-anchor="middle">median {median:,.0f}</text><text x="240" y="89" '
        f'text-anchor="end">{edges[-1] - 1:,}</text></svg>'
        f"<figcaption>{summary['truncated']:,} of {summary['examples']:,} examples cut to fit "
        f"{length:,}, {summary['fill']:.1%} of places filled</figcaption></figure>"
    )


STYLE = """
.checks,.seen,.lengths{font-family:system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",
"Liberation Sans",Arial,sans-serif;font-size:.8rem}
.checks{list-style:none;padding:0;margin:0;max-width:60rem}
.checks li{padding:.5rem .8rem;margin:.4rem 0;background:var(--tint);border-radius:4px;
border-left:4px solid var(--series4);white-space:pre-wrap;overflow-wrap:anywhere}
.checks .fault{border-color:var(--series1);font-weight:600}.checks .well{border-color:var(--good)}
.seen input{position:absolute;opacity:0}
.legend{display:flex;flex-wrap:wrap;gap:.6rem;align-items:baseline;margin:.5rem 0 1rem}
.legend label{border:1px solid var(--rule);border-radius:4px;padding:.15rem .6rem;cursor:pointer}
.seen input:focus-visible~.legend label{outline:2px solid var(--series0)}
.seen input:checked~.legend label{background:var(--ink);color:var(--page)}
.seen input:checked~article pre span{box-shadow:inset 1px 0 var(--muted)}
.seen article{margin:0 0 1.25rem;padding:.9rem 1rem 1rem}
h3,h4{margin:0;font-size:.85rem;font-weight:650}
h3 small{font-weight:400;color:var(--muted);margin-left:.7rem;font-size:.78rem}
h4{font-weight:400;color:var(--muted);font-size:.76rem;margin:.8rem 0 .25rem}
.seen pre{max-height:none;font-size:.78rem;line-height:1.65}
.seen pre span:hover{background:var(--rule)}
.seen b{all:unset;color:var(--muted);opacity:.6}
.t{background:color-mix(in srgb,var(--good) 22%,transparent);
border-bottom:2px solid var(--good)}
.s{color:var(--series3);border:1px solid currentColor;border-radius:3px}
.s.t{border-bottom:2px solid var(--good)}
.p{text-decoration:underline dotted var(--series0);text-underline-offset:3px}
.seen i{font-style:normal}.seen i:before{content:"→";color:var(--muted)}
.strip{height:.6rem;min-width:0;margin:.5rem 0 .2rem;background:repeating-linear-gradient(135deg,
var(--rule) 0 2px,transparent 2px 5px)}
.d0{fill:color-mix(in srgb,var(--series0) 35%,var(--page))}
.d1{fill:color-mix(in srgb,var(--series0) 55%,var(--page))}.on{fill:var(--good)}
.lengths{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,17rem),1fr));
gap:1rem 2rem}.lengths figure{margin:0}.lengths svg{min-width:0}.lengths h4{color:var(--ink)}
.lengths rect{fill:var(--series0)}.lengths line{stroke:var(--rule)}
.lengths text{font-size:9px;fill:var(--muted)}
"""
