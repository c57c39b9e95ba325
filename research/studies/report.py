"""A study's page: README.md with plot.svg, report.html, and the ledger they are made from.

What its authors say of the numbers stands in findings.md, and is taken into README.md.

From the same ledger come the same bytes, on any machine and on any day.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup
from tqdm import tqdm

from research.config import schema
from research.reports import page, plots
from research.reports.statistics import Estimate
from research.reports.tables import Column, format_si, table, text_table
from research.runtime import files
from research.studies.ledger import Row, to_parquet
from research.studies.results import find_row
from research.studies.schedule import Progress
from research.studies.tables import MEASURES, cell_table
from research.studies.trials import Resolver
from research.studies.verdicts import Verdict, verdicts

LEDGER, README, PLOT, PAGE = "ledger.parquet", "README.md", "plot.svg", "report.html"
# what its authors say of the numbers, by hand; the page takes it as it is
FINDINGS = "findings.md"
_VERDICTS = [
    Column("claim", "claim"),
    Column("verdict", "verdict"),
    Column("difference", "difference", tip="with its 95% interval over seeds"),
    Column("p", "p", format=".2g", tip="after Holm's correction"),
    Column("detectable", "detectable", format=".2g", tip="what four of five such studies see"),
    Column("published", "published"),
]


def write(
    folder: Path, name: str, resolver: Resolver, rows: Mapping[str, Row], progress: Progress
) -> None:
    """Writes the files of a study into its folder.

    Raises:
      ValueError: no trial has run.
    """
    stage, lines, columns = cell_table(resolver, rows, progress)
    if not lines:
        raise ValueError("no trial has run: graft study run")
    judged = verdicts(resolver, rows, progress)
    study_rows = _used_rows(resolver, rows, progress)
    plot = _plot(resolver, lines)
    curves = _sweep_plot(resolver, progress)
    files.atomic_write(folder / LEDGER, to_parquet(study_rows))
    files.atomic_write(folder / PLOT, plots.standalone(plot))
    texts = _texts(resolver, progress, study_rows)
    findings = folder / FINDINGS
    notes = [findings.read_text(encoding="utf-8").strip()] if findings.exists() else []
    verdict_rows = [_verdict_row(verdict) for verdict in judged]
    parts = [
        f"# {name}",
        *(f"**{label}** {text}" if label else text for label, text in texts),
        *notes,
        *([text_table(verdict_rows, _present(verdict_rows))] if verdict_rows else []),
        *_unjudged(judged),
        f"![{resolver.study.metric} of every cell]({PLOT})",
        f"Stage `{stage}`; means with 95% intervals (Student's t) over n seeds.",
        text_table(lines, columns),
        _how(name),
    ]
    files.atomic_write(folder / README, "\n\n".join(parts) + "\n")
    sections = [
        page.section(
            "What it says",
            *(f"{label} {text}" if label else text for label, text in texts),
            *([table(verdict_rows, _present(verdict_rows))] if verdict_rows else []),
            *_unjudged(judged),
        ),
        page.section("Every cell", plot, table(lines, columns)),
    ]
    if curves:
        sections.append(page.section("The sweep", curves))
    page.write(
        folder / PAGE,
        name,
        *sections,
        finding=resolver.study.claim,
        provenance={"study": schema.to_dict(resolver.study), "code": _codes(study_rows)},
    )


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


def _name(verdict: Verdict) -> str:
    comparison = verdict.comparison
    if comparison.margin is not None:
        text = (
            f"{comparison.better} and {comparison.worse} differ by less than {comparison.margin:g}"
        )
    else:
        text = f"{comparison.better} beats {comparison.worse}"
    return f"{text} ({verdict.label})" if verdict.label else text


def _unjudged(judged: Sequence[Verdict]) -> list[str]:
    """Why comparisons have no verdict: a paragraph a reason."""
    names: dict[str, list[str]] = {}
    for verdict in judged:
        for reason in verdict.reasons:
            names.setdefault(reason, []).append(_name(verdict))
    return [f"No verdict: {reason} ({'; '.join(each)})." for reason, each in names.items()]


def _verdict_row(verdict: Verdict) -> dict[str, Any]:
    return {
        "claim": _name(verdict),
        "verdict": verdict.word,
        "difference": verdict.difference,
        "p": verdict.p_value,
        "detectable": verdict.detectable,
        "published": verdict.comparison.published or None,
    }


def _present(rows: Sequence[Mapping[str, Any]]) -> list[Column]:
    keys = {key for row in rows for key, value in row.items() if value is not None}
    return [column for column in _VERDICTS if column.key in keys]


def _used_rows(resolver: Resolver, rows: Mapping[str, Row], progress: Progress) -> list[Row]:
    """The row of every trial of the study, by address."""
    candidates = [find_row(resolver, rows, trial) for trial in progress.trials]
    by_address = {row["address"]: row for row in candidates if row is not None}
    return [by_address[address] for address in sorted(by_address)]


def _codes(study_rows: Sequence[Row]) -> str:
    return ", ".join(sorted({row["code"] for row in study_rows}))


def _plot(resolver: Resolver, lines: Sequence[Mapping[str, Any]]) -> Markup:
    """The metric of every cell, and the other scores beside it."""
    metric = resolver.study.metric
    measures = {column.key: column for column in MEASURES}
    keys = [metric, *(key for key in ("quality", "forgetting", "heldout_loss") if key != metric)]
    panels = {}
    for key in keys:
        values = [line.get(key) for line in lines]
        if any(value is not None for value in values):
            column = measures.get(key, Column(key, key))
            title = f"{column.header} ({column.unit})" if column.unit else column.header
            panels[title] = [_scaled(value, column.scale) for value in values]
    names = [
        f"{line['cell']} ({format_si(line['trainable_parameters'])})"
        if isinstance(line.get("trainable_parameters"), int | float)
        else line["cell"]
        for line in lines
    ]
    caption = "In brackets trained parameters. Means and 95% intervals over seeds."
    return plots.bar_plot(names, dict(itertools.islice(panels.items(), 3)), caption)


def _scaled(value: float | Estimate | None, scale: float) -> float | Estimate | None:
    if isinstance(value, Estimate):
        return value.scaled(scale)
    return None if value is None else value * scale


def _sweep_plot(resolver: Resolver, progress: Progress) -> Markup | None:
    """The metric against the swept value in the first stage, a curve for each cell."""
    study = resolver.study
    choices = progress.choices.get(study.stages[0].name, ())
    if study.sweep is None or not choices:
        return None
    series = {}
    for choice in choices:
        values = sorted(value for value in choice.means if value is not None)
        series[choice.cell.label] = (values, [choice.means[value] for value in values])
    return plots.line_plot(series, study.sweep.key, study.metric, log_x=True)
