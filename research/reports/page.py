"""One self-contained HTML page per report: tables, plots as inline SVG, samples, provenance.

The page makes no request (its content policy forbids any), runs no script, and reads well on light
and dark screens, on paper and without colour vision. Whatever is not `Html` is escaped, so text
of models, data and configs can be passed as it is.

    rows = [{"run": "LoRA", "quality": proportion_interval(correct)}]
    columns = [Column("run", "run"), Column("quality", "quality", "%", scale=100, format=".1f")]
    write(path, "Title", section("Results", table(rows, columns)), finding="One sentence.")
"""

from __future__ import annotations

import html
import json
import numbers
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from research.reports.plots import Html, Point, bar_plot, line_plot, scatter_plot, si
from research.reports.statistics import Estimate, PairedDifference
from research.runtime import files

__all__ = [
    "Column",
    "Html",
    "Point",
    "bar_plot",
    "line_plot",
    "samples",
    "scatter_plot",
    "section",
    "table",
    "text_table",
    "write",
]


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


def table(
    rows: Sequence[Mapping[str, Any]],
    columns: Sequence[Column] | None = None,
    caption: str = "",
    by: str = "",
) -> Html:
    """Rows of dicts as a table; a missing or None value prints as a dash.

    columns: which keys, in order; by default every key of the rows under its own name.
    by: a key that groups consecutive rows under a heading of their own.

    Raises:
      ValueError: a column that no row has.
    """
    columns = _columns(rows, columns)
    numeric = [_is_numeric(rows, column) for column in columns]
    head = ""
    if any(column.group for column in columns):
        for name, members in groupby(columns, key=lambda column: column.group):
            kind = " class=group" if name else ""
            head += f'<th colspan="{len(list(members))}"{kind}>{html.escape(name)}</th>'
        head = f"<tr>{head}</tr>"
    cells = (
        f"<th{' class=number' if right else ''}{_tip(column.tip)} scope=col>"
        f"{html.escape(column.header)}"
        + (f" <small>({html.escape(column.unit)})</small>" if column.unit else "")
        + "</th>"
        for column, right in zip(columns, numeric, strict=True)
    )
    head += f"<tr>{''.join(cells)}</tr>"
    body, previous = "", None
    for row in rows:
        if by and row.get(by) != previous:
            previous = row.get(by)
            heading = html.escape(str(previous or ""))
            body += f"<tr class=by><th scope=rowgroup><span>{heading}</span></th>"
            body += f'<td colspan="{len(columns) - 1}"></td></tr>' if len(columns) > 1 else "</tr>"
        body += "<tr>"
        for i, (column, right) in enumerate(zip(columns, numeric, strict=True)):
            tag = "td" if i else "th scope=row"
            kind = " class=number" if right else ""
            body += f"<{tag}{kind}>{_cell(row.get(column.key), column)}</{tag[:2]}>"
        body += "</tr>"
    note = f"<p class=caption>{html.escape(caption)}</p>" if caption else ""
    wide = " class=wide" if len(columns) > 8 else ""  # intervals then stand below their values
    return Html(
        f"<figure><div class=scroll tabindex=0><table{wide}><thead>{head}</thead>"
        f"<tbody>{body}</tbody></table></div>{note}</figure>"
    )


def text_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[Column] | None = None) -> str:
    """The same table in aligned Markdown, for a terminal or a README."""
    columns = _columns(rows, columns)
    lines = [[f"{c.header} ({c.unit})" if c.unit else c.header for c in columns]]
    lines += [[_text(row.get(c.key), c) for c in columns] for row in rows]
    lines = [[cell.replace("|", r"\|").replace("\n", " ") for cell in line] for line in lines]
    widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(columns))]
    right = [_is_numeric(rows, column) for column in columns]
    rule = ["-" * (w - 1) + (":" if r else "-") for w, r in zip(widths, right, strict=True)]
    printed = []
    for line in [lines[0], rule, *lines[1:]]:
        cells = zip(line, widths, right, strict=True)
        printed.append(" | ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in cells))
    return "\n".join(f"| {line} |" for line in printed)


def samples(items: Sequence[Mapping[str, Any]], caption: str = "") -> Html:
    """Prompts with the expected completion and each model's answer, all of it escaped.

    items: {"prompt": str, "expected": str, "answers": {model name: answer}}.
    """
    cards = []
    for item in items:
        expected = str(item["expected"]).strip()
        answers = ""
        for model, answer in item["answers"].items():
            answer = str(answer).strip()
            right = answer == expected
            mark = "<b class=right title=right>✓</b>" if right else "<b title=wrong>✗</b>"
            answers += f"<dt>{html.escape(model)}</dt>"
            answers += f"<dd>{mark} <code>{html.escape(answer) or '(empty)'}</code></dd>"
        cards.append(
            f"<article><pre tabindex=0>{html.escape(str(item['prompt']))}</pre><dl>"
            f"<dt>expected</dt><dd><b></b> <code>{html.escape(expected)}</code></dd>"
            f"{answers}</dl></article>"
        )
    note = f"<p class=caption>{html.escape(caption)}</p>" if caption else ""
    return Html(f"<div class=samples>{''.join(cards)}</div>{note}")


def section(title: str, *parts: str) -> Html:
    """A heading and what follows it; plain strings become escaped paragraphs."""
    return Html(f"<section><h2>{html.escape(title)}</h2>{''.join(map(_block, parts))}</section>")


def write(
    path: str | os.PathLike[str],
    title: str,
    *sections: str,
    finding: str = "",
    provenance: Mapping[str, Any] | None = None,
    style: str = "",
) -> Path:
    """Write the page, replacing an older one only when the new one is complete.

    finding: the result in one sentence, printed under the title.
    provenance: name -> text, a mapping of texts (versions), or anything that prints as JSON
      (config); what takes several lines folds away.
    style: rules for parts of this page alone, after `STYLE`.
    """
    entries = ""
    for name, value in (provenance or {}).items():
        if isinstance(value, Mapping) and all(isinstance(v, str) for v in value.values()):
            text = ", ".join(f"{key} {v}" for key, v in value.items())
        else:
            text = value if isinstance(value, str) else json.dumps(value, indent=2, default=str)
        escaped = html.escape(text)
        if "\n" in text:
            escaped = f"<details><summary>show</summary><pre>{escaped}</pre></details>"
        entries += f"<dt>{html.escape(name)}</dt><dd>{escaped}</dd>"
    footer = f"<footer><h2>Provenance</h2><dl>{entries}</dl></footer>" if entries else ""
    lead = f"<p class=finding>{html.escape(finding)}</p>" if finding else ""
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{html.escape(title)}</title>'
        f"<style>{STYLE}{style}</style></head><body><main><header><h1>{html.escape(title)}</h1>{lead}"
        f"</header>{''.join(map(_block, sections))}{footer}</main></body></html>\n"
    )
    path = Path(path)
    files.atomic_write(path, page)
    return path


def _block(part: str) -> str:
    return part if isinstance(part, Html) else f"<p>{html.escape(part)}</p>"


def _columns(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[Column] | None
) -> Sequence[Column]:
    keys = list(dict.fromkeys(key for row in rows for key in row))
    if columns is None:
        return [Column(key, key) for key in keys]
    missing = [column.key for column in columns if column.key not in keys]
    if rows and missing:
        raise ValueError(f"no row has the column {missing[0]!r}; the rows' keys are {keys}")
    return columns


def _is_numeric(rows: Sequence[Mapping[str, Any]], column: Column) -> bool:
    values = [row[column.key] for row in rows if row.get(column.key) is not None]
    kinds = (numbers.Number, Estimate, PairedDifference)
    return bool(values) and all(isinstance(value, kinds) for value in values)


def _text(value: Any, column: Column) -> str:
    """A value as plain text, in the column's unit and format."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(
        value, (numbers.Number, Estimate, PairedDifference)
    ):
        return str(value)
    if isinstance(value, PairedDifference):
        value = value.difference
    if isinstance(value, Estimate):
        value = value.scaled(column.scale)
        if column.format == "si":
            return f"{si(value.value)} [{si(value.low)}, {si(value.high)}]"
        return format(value, column.format)
    if column.scale != 1:
        value = value * column.scale
    if column.format:
        return si(value) if column.format == "si" else format(value, column.format)
    if isinstance(value, numbers.Integral):
        return f"{value:,}"
    # Three digits, but never an exponent for everyday sizes.
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.3g}"


def _cell(value: Any, column: Column) -> str:
    if isinstance(value, Html):
        return value
    text = html.escape(_text(value, column))
    if value is None:
        return "<span class=none>–</span>"
    if isinstance(value, (Estimate, PairedDifference)):
        number, _, interval = text.replace("-", "−").partition(" ")
        tip = f"p = {value.p_value:.2g}" if isinstance(value, PairedDifference) else ""
        return f"<span{_tip(tip)}>{number} <span class=interval>{interval}</span></span>"
    return text


def _tip(text: str) -> str:
    return f' title="{html.escape(text)}"' if text else ""


# Hand-written and small: one column of text, tables that scroll inside themselves, both colour
# schemes. Series colours are Okabe and Ito's, darkened on light pages and lightened on dark ones.
STYLE = """
:root{color-scheme:light dark;--page:#fdfcfa;--ink:#1d1f22;--muted:#62676e;--rule:#dedbd5;
--tint:#f3f1ec;--good:#00734f;--series0:#0067a8;--series1:#c14f00;--series2:#00805c;
--series3:#a8497e;--series4:#946200;--series5:#2b83b5}
@media(prefers-color-scheme:dark){:root{--page:#15171a;--ink:#e6e4df;--muted:#9aa0a8;
--rule:#33373d;--tint:#1d2024;--good:#4cc79c;--series0:#5ab0ea;--series1:#f08a4b;
--series2:#3fc79a;--series3:#e295bf;--series4:#e9b44c;--series5:#8fd0f5}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);line-height:1.55;font-size:17px;
font-family:Charter,"Bitstream Charter","Sitka Text",Cambria,Georgia,serif}
main{max-width:84rem;margin:0 auto;padding:4rem 1.5rem 3rem}
h1,h2,table,figcaption,.caption,svg,footer,.samples{font-family:system-ui,-apple-system,
"Segoe UI",Roboto,"Helvetica Neue","Liberation Sans",Arial,sans-serif}
h1{font-size:1.05rem;font-weight:600;color:var(--muted);margin:0 0 .75rem}
.finding{font-size:1.75rem;line-height:1.3;margin:0;max-width:46rem;text-wrap:pretty}
h2{font-size:1.15rem;font-weight:650;margin:0 0 .5rem}
section{margin-top:3.25rem}
p{max-width:44rem;margin:0 0 1rem}
figure{margin:1.25rem 0 2rem}
figcaption,.caption{font-size:.8rem;color:var(--muted);max-width:44rem;margin:.6rem 0 0}
.scroll{overflow-x:auto}
svg{display:block;width:100%;min-width:46rem;height:auto}
svg text{font-family:inherit}
table{border-collapse:collapse;font-size:.8rem;line-height:1.35;
font-variant-numeric:tabular-nums lining-nums;min-width:min(100%,44rem)}
.wide{min-width:100%;font-size:.74rem}
th,td{padding:.42rem .6rem;text-align:left;vertical-align:baseline;white-space:nowrap;
font-weight:400}
thead th{color:var(--muted);vertical-align:bottom;padding-bottom:.35rem;white-space:normal}
thead th small{font-size:inherit;display:block;opacity:.85}
thead th[title]{text-decoration:underline dotted;text-underline-offset:3px}
thead th.group{border-bottom:1px solid var(--rule);color:var(--ink);font-weight:600}
thead tr:last-child th{border-bottom:1.5px solid var(--ink)}
tbody tr+tr>*{border-top:1px solid var(--rule)}
tbody tr:last-child>*{border-bottom:1px solid var(--rule)}
tbody tr:not(.by):hover>*{background:var(--tint)}
th:first-child{position:sticky;left:0;background:var(--page);padding-left:0}
tbody th{font-weight:550}
.by th{color:var(--muted);font-weight:600;padding-top:1.1rem}
.number{text-align:right}
.wide th,.wide td{padding-left:.4rem;padding-right:.4rem}.wide th:first-child{padding-left:0}
.wide .interval{display:block}
.interval,.none{color:var(--muted);font-size:.92em}
.samples{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,26rem),1fr));
gap:1rem;font-size:.8rem}
article{background:var(--tint);border-radius:6px;padding:.9rem 1rem;min-width:0}
pre,code{font-family:ui-monospace,"SF Mono",Menlo,Consolas,"Liberation Mono",monospace;
font-size:.75rem;line-height:1.5}
pre{white-space:pre-wrap;overflow-wrap:anywhere;max-height:13rem;overflow:auto;margin:0}
code{overflow-wrap:anywhere;white-space:pre-wrap}
dl{display:grid;grid-template-columns:max-content minmax(0,1fr);gap:.25rem 1rem;margin:0}
dt{color:var(--muted)}dd{margin:0;overflow-wrap:anywhere}
article dl{border-top:1px solid var(--rule);margin-top:.8rem;padding-top:.7rem}
article b{display:inline-block;width:1rem;color:var(--muted)}article b.right{color:var(--good)}
footer{margin-top:4rem;padding-top:1.25rem;border-top:1px solid var(--rule);font-size:.8rem}
footer h2{font-size:.8rem}summary{cursor:pointer}
footer pre{max-height:24rem;margin-top:.5rem}
@media(max-width:40rem){main{padding-top:2rem}.finding{font-size:1.35rem}}
@media print{main{max-width:none;padding:0}.scroll{overflow:visible}pre{max-height:none}}
"""
