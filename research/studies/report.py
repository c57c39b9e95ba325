"""A study's page: README.md with its plots, report.html, its verdicts, and the ledger behind them.

What its authors say of the numbers stands in findings.md, and is taken into README.md.

From the same ledger come the same bytes, on any machine and on any day.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from research.reports import page
from research.reports.figures import Drawing
from research.reports.tables import Column, format_si, table, text_table
from research.runtime import files
from research.studies import figures
from research.studies.answers import Answer, work_out
from research.studies.ledger import Row, to_parquet
from research.studies.results import find_row, joined_rows
from research.studies.schedule import Progress
from research.studies.tables import CellTable, cell_table
from research.studies.trials import Resolver
from research.studies.verdicts import Verdict, verdicts

LEDGER, README, PAGE, VERDICTS = "ledger.parquet", "README.md", "report.html", "verdicts.json"
PLOTS = "plots"  # a folder with NAME.svg and NAME.png for each figure
# what its authors say of the numbers, by hand; the page takes it as it is
FINDINGS = "findings.md"
COLUMNS = (
    Column("claim", "claim"),
    Column("verdict", "verdict"),
    Column("estimate", "measured", tip="a difference, ratio or change, with its 95% interval"),
    Column("p", "p", format=".2g", tip="after Holm's correction"),
    Column("detectable", "detectable", format=".2g", tip="what four of five such studies see"),
    Column("seeds", "seeds for it", tip="that would tell it from its limit, if it is as it seems"),
    Column("published", "published"),
)
_HEADINGS = {
    "cells": "Every cell",
    "forgetting": "Learnt and forgotten",
    "sweep": "The sweep",
}


def write(
    folder: Path, name: str, resolver: Resolver, rows: Mapping[str, Row], progress: Progress
) -> list[str]:
    """Writes the files of a study into its folder; returns their names.

    Raises:
      ValueError: no trial has run.
    """
    cells = cell_table(resolver, rows, progress)
    if not cells.lines:
        raise ValueError("no trial has run: graft study run")
    judged = verdicts(resolver, rows, progress)
    drawings = figures.draw(resolver, rows, progress, cells)
    study_rows = _used_rows(resolver, rows, progress)
    texts = _texts(resolver, progress, study_rows)
    answers = _answers(resolver, rows, progress)
    _write_plots(folder / PLOTS, drawings)
    contents: dict[str, str | bytes] = {
        LEDGER: to_parquet(study_rows),
        VERDICTS: _verdicts_json(progress, judged),
        README: _readme(folder, name, texts, judged, answers, cells, drawings),
    }
    for file, content in contents.items():
        files.atomic_write(folder / file, content)
    sections = [
        page.section(
            "What it says",
            *(f"{label} {text}" if label else text for label, text in texts),
            *([table(*verdict_table(judged))] if judged else []),
            *unjudged(judged),
        ),
        *(page.section(a.heading, a.text, *_table(a, table)) for a in answers),
        page.section(_HEADINGS["cells"], drawings["cells"].page, table(cells.lines, cells.columns)),
    ]
    for key, drawing in drawings.items():
        if key != "cells":
            sections.append(page.section(_heading(key), drawing.page))
    page.write(
        folder / PAGE,
        name,
        *sections,
        finding=resolver.study.claim,
        provenance={"study": resolver.study.to_dict(), "code": _codes(study_rows)},
    )
    return [*contents, PAGE, PLOTS]


def _write_plots(folder: Path, drawings: Mapping[str, Drawing]) -> None:
    """Every figure as SVG and PNG; those of an earlier page go."""
    contents: dict[str, str | bytes] = {}
    for key, drawing in drawings.items():
        contents |= {f"{key}.svg": drawing.svg, f"{key}.png": drawing.png}
    for path in [*folder.glob("*.svg"), *folder.glob("*.png")]:
        if path.name not in contents:
            path.unlink()
    for file, content in contents.items():
        files.atomic_write(folder / file, content)


def _readme(
    folder: Path,
    name: str,
    texts: Sequence[tuple[str, str]],
    judged: Sequence[Verdict],
    answers: Sequence[Answer],
    cells: CellTable,
    drawings: Mapping[str, Drawing],
) -> str:
    findings = folder / FINDINGS
    plots = {key: f"[![{_heading(key)}]({PLOTS}/{key}.png)]({PLOTS}/{key}.svg)" for key in drawings}
    parts = [
        f"# {name}",
        *(f"**{label}** {text}" if label else text for label, text in texts),
        *([text_table(*verdict_table(judged))] if judged else []),
        *unjudged(judged),
        *([findings.read_text(encoding="utf-8").strip()] if findings.exists() else []),
        *(part for a in answers for part in (f"## {a.heading}", a.text, *_table(a, text_table))),
        plots.pop("cells"),
        f"Stage `{cells.stage}`; means with 95% intervals (Student's t) over n seeds; costs are "
        "medians. `(edge)`: the best value lies at an edge of those tried.",
        text_table(cells.lines, cells.columns),
        *plots.values(),
        _how(name),
    ]
    return "\n\n".join(parts) + "\n"


def _answers(resolver: Resolver, rows: Mapping[str, Row], progress: Progress) -> list[Answer]:
    """What the study works out of its trials once it is finished."""
    name = resolver.study.answers
    if name is None or not progress.is_finished:
        return []
    return work_out(name, list(joined_rows(resolver, rows, progress)))


def _table(answer: Answer, draw: Callable[..., str]) -> list[str]:
    return [draw(answer.lines, answer.columns)] if answer.lines else []


def _heading(key: str) -> str:
    return _HEADINGS.get(key) or f"Along {key.removeprefix('axis_')}"


def _texts(
    resolver: Resolver, progress: Progress, study_rows: Sequence[Row]
) -> list[tuple[str, str]]:
    """(label or "", text): what the study claims, what it cost, and what to beware of."""
    study = resolver.study
    seconds = sum(row.get("seconds", 0.0) for row in study_rows)
    flops = sum(row.get("flops", 0.0) for row in study_rows)
    devices = sorted({f"{row['devices']} x {row['device']}" for row in study_rows})
    texts = [("Claim.", f"{study.claim} ({study.source})")] if study.claim else []
    if study.refuted_if:
        texts.append(("Refuted if", study.refuted_if))
    if not progress.is_finished:
        texts.append(("", "The study is not finished: there are no verdicts yet."))
    cost = f"{len(study_rows)} trials, {format_si(flops)} FLOPs, {tqdm.format_interval(seconds)}"
    texts.append(("", f"{cost} of {', '.join(devices)}."))
    edges = [
        choice.cell.label
        for choice in progress.choices.get(study.stages[0].name, ())
        if choice.at_edge
    ]
    if edges:
        warning = (
            f"The best value lies at an edge of those tried for {', '.join(edges)}: a better one "
            "may lie beyond, and nothing is concluded from them."
        )
        texts.append(("", warning))
    return texts


def _how(name: str) -> str:
    return (
        "Again, from nothing (what the ledger has is not run again):\n\n"
        f"    graft study run experiments/{name}\n"
        f"    graft study report experiments/{name}"
    )


def unjudged(judged: Sequence[Verdict]) -> list[str]:
    """Why claims have no verdict: a paragraph a reason."""
    texts: dict[str, list[str]] = {}
    for verdict in judged:
        for reason in verdict.reasons:
            texts.setdefault(reason, []).append(verdict.text)
    paragraphs = []
    for reason, each in texts.items():
        about = "" if len(each) == len(judged) else f" ({'; '.join(each)})"
        paragraphs.append(f"No verdict: {reason}{about}.")
    return paragraphs


def verdict_table(judged: Sequence[Verdict]) -> tuple[list[dict[str, Any]], list[Column]]:
    """A row for each comparison, and those columns that any of them has."""
    rows = [
        {
            "claim": verdict.text,
            "verdict": verdict.word,
            "estimate": verdict.estimate,
            "p": verdict.p_value,
            "detectable": verdict.detectable,
            "seeds": verdict.seeds_needed if verdict.word == "inconclusive" else None,
            "published": verdict.comparison.published or None,
        }
        for verdict in judged
    ]
    keys = {key for row in rows for key, value in row.items() if value is not None}
    return rows, [column for column in COLUMNS if column.key in keys]


def _verdicts_json(progress: Progress, judged: Sequence[Verdict]) -> str:
    """The verdicts for programs: the index of studies is made from them."""
    content = {
        "finished": progress.is_finished,
        "verdicts": [
            {
                "claim": verdict.text,
                "verdict": verdict.word,
                "measured": [verdict.estimate.value, verdict.estimate.low, verdict.estimate.high]
                if verdict.estimate
                else None,
                "p": verdict.p_value,
                "reasons": verdict.reasons,
            }
            for verdict in judged
        ],
    }
    return json.dumps(content, indent=2) + "\n"


def _used_rows(resolver: Resolver, rows: Mapping[str, Row], progress: Progress) -> list[Row]:
    """The row of every trial of the study, by address."""
    candidates = [find_row(resolver, rows, trial) for trial in progress.trials]
    by_address = {row["address"]: row for row in candidates if row is not None}
    return [by_address[address] for address in sorted(by_address)]


def _codes(study_rows: Sequence[Row]) -> str:
    return ", ".join(sorted({row["code"] for row in study_rows}))
