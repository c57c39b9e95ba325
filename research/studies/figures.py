"""The figures of a study, chosen by what it varies and measures.

Always its cells with their intervals; of a sweep the metric against the swept value; of an axis of
three numbers or more the metric, and the best swept value, against it; and where both were
measured, what was learnt against what was forgotten.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from research.reports import figures
from research.reports.figures import Curve, Drawing, Panel
from research.reports.statistics import Estimate, mean_interval
from research.reports.tables import Column
from research.studies.cells import Cell, lines_along
from research.studies.comparisons import MIN_POINTS
from research.studies.ledger import Row
from research.studies.results import FORGETTING, lookup_in
from research.studies.schedule import Choice, Progress
from research.studies.tables import CellTable, measure, title
from research.studies.trials import Resolver

# scores that stand beside the metric, at most so many in all
_SCORES = ("quality", FORGETTING, "heldout_loss")
_MOST_PANELS = 3
# small panels that are still looked at; the table has every best value and edge
_MOST_MULTIPLES = 40
_INTERVALS = "Means and 95% intervals over seeds."

Value = float | Estimate


def draw(
    resolver: Resolver, rows: Mapping[str, Row], progress: Progress, table: CellTable
) -> dict[str, Drawing]:
    """Name of a file -> its figure, in the order in which a page has them."""
    drawings = {"cells": _cells(resolver, table)}
    drawings |= dict(_along_axes(resolver, progress, table))
    if FORGETTING in {key for line in table.lines for key in line}:
        drawings |= dict(_against_forgetting(resolver, table))
    drawings |= dict(_sweep(resolver, rows, progress))
    return drawings


def _cells(resolver: Resolver, table: CellTable) -> Drawing:
    """Every cell: the metric, and the other scores beside it."""
    metric = resolver.study.metric
    panels: dict[str, list[Value | None]] = {}
    for key in dict.fromkeys((metric, *_SCORES)):
        column = measure(key)
        values = [_scaled(line.get(key), column) for line in table.lines]
        if any(value is not None for value in values) and len(panels) < _MOST_PANELS:
            panels[title(column)] = values
    return figures.dot_plot(
        [str(line["cell"]) for line in table.lines], panels, _kinds(resolver, table), _INTERVALS
    )


def _along_axes(
    resolver: Resolver, progress: Progress, table: CellTable
) -> Iterator[tuple[str, Drawing]]:
    """The metric against every axis of numbers, and the best swept value beside it."""
    study = resolver.study
    lines = dict(zip(table.cells, table.lines, strict=True))
    choices = {choice.cell: choice for choice in progress.choices.get(table.stage, ())}
    drawn_cells: set[tuple[Cell, ...]] = set()
    for key in resolver.cells[0].point:
        candidates = [cell for cell in lines if key in cell.point]
        series = {
            label: points
            for label, points in lines_along(key, candidates).items()
            if len(points) >= MIN_POINTS
        }
        order = tuple(cell for points in series.values() for _, cell in points)
        if not series or order in drawn_cells:  # axes that go together are one
            continue
        drawn_cells.add(order)
        name = key.rpartition(".")[2]
        if len(series) > figures.MOST_LINES and len(resolver.cells[0].point) > 1:
            yield from _ways_along(resolver, key, table)
        column = measure(study.metric)
        curves, best_curves = [], []
        for label, points in list(series.items())[: figures.MOST_LINES]:
            values = [
                (number, _scaled(lines[cell].get(study.metric), column)) for number, cell in points
            ]
            known = [(number, value) for number, value in values if value is not None]
            if known:
                curves.append(Curve(label or "all", [x for x, _ in known], [y for _, y in known]))
            best = [
                (number, choices[cell].best, choices[cell].at_edge)
                for number, cell in points
                if cell in choices and choices[cell].best is not None
            ]
            if best:
                numbers, best_values, edges = zip(*best, strict=True)
                best_curves.append(
                    Curve(
                        label or "all",
                        numbers,
                        best_values,
                        edges=[n for n, e in zip(numbers, edges, strict=True) if e],
                    )
                )
        panels = [
            Panel(curves, title(column), figures.spans_decade(v for c in curves for v in c.y))
        ]
        if best_curves and study.sweep is not None:
            sweep_name = study.sweep.key.rpartition(".")[2]
            panels.append(Panel(best_curves, f"best {sweep_name}", log_y=True))
        if curves:
            yield f"axis_{_file_name(name)}", figures.curve_plot(panels, name, _INTERVALS)


def _ways_along(resolver: Resolver, key: str, table: CellTable) -> Iterator[tuple[str, Drawing]]:
    """A figure for each point of the other axes: the score of every form against this one."""
    has_quality = any("quality" in line for line in table.lines)
    score = "quality" if has_quality else resolver.study.metric
    column, name = measure(score), key.rpartition(".")[2]
    groups: dict[str, dict[str, list[tuple[float, Value]]]] = {}
    for cell, line in zip(table.cells, table.lines, strict=True):
        value = _scaled(line.get(score), column)
        if key in cell.point and value is not None:
            others = {other: number for other, number in cell.point.items() if other != key}
            forms = groups.setdefault(" ".join(Cell("", 0, others).parts), {})
            forms.setdefault(cell.form, []).append((float(cell.point[key]), value))
    for label, forms in groups.items():
        panels = {}
        for form, points in forms.items():
            numbers, values = zip(*sorted(points, key=lambda point: point[0]), strict=True)
            if len(points) > 1:
                panels[form] = [Curve(form, numbers, values)]
        if panels:
            file = f"ways_{_file_name(name)}_{_file_name(label.rpartition('=')[2])}"
            caption = f"{label}. {_INTERVALS} Gray: the other forms."
            log_y = False if has_quality else None  # shares are read from zero
            yield file, figures.small_multiples(panels, name, title(column), caption, log_y)


def _against_forgetting(resolver: Resolver, table: CellTable) -> Iterator[tuple[str, Drawing]]:
    """What was learnt against what was forgotten, where both were measured."""
    score = next(
        (
            key
            for key in ("quality", resolver.study.metric)
            if any(key in line for line in table.lines)
        ),
        None,
    )
    if score in (None, FORGETTING):
        return
    columns = measure(FORGETTING), measure(str(score))
    points, kinds = {}, []
    for line, kind in zip(table.lines, _kinds(resolver, table), strict=True):
        forgotten, value = (_scaled(line.get(column.key), column) for column in columns)
        if forgotten is not None and value is not None:
            points[str(line["cell"])] = (forgotten, value)
            kinds.append(kind)
    if points:
        x, y = map(title, columns)
        yield "forgetting", figures.cross_plot(points, x, y, kinds, _INTERVALS)


def _sweep(
    resolver: Resolver, rows: Mapping[str, Row], progress: Progress
) -> Iterator[tuple[str, Drawing]]:
    """The metric against the swept value in the first stage, with the best value and its edges."""
    study = resolver.study
    choices = progress.choices.get(study.stages[0].name, ())
    if study.sweep is None or not choices:
        return
    lookup = lookup_in(resolver, rows)
    numbers: dict[tuple[Cell, float], list[float]] = {}
    for trial in progress.trials:
        metric = lookup(trial) if trial.stage == study.stages[0].name else None
        if trial.value is not None and metric is not None:
            numbers.setdefault((trial.cell, trial.value), []).append(metric)
    column = measure(study.metric)
    curves = {choice.cell: _sweep_curve(choice, numbers, column) for choice in choices}
    x, y = study.sweep.key.rpartition(".")[2], title(column)
    caption = (
        "First stage. A ring: the best value; a triangle: that lies at an edge of those tried; a "
        "cross at the top: diverged."
    )
    heights = (value for curve in curves.values() for value in curve.y)
    log_y = figures.spans_decade(heights, figures.LOG_FACTOR)
    if len(curves) <= figures.MOST_LINES:
        yield "sweep", figures.curve_plot([Panel(list(curves.values()), y, log_y)], x, caption)
        return
    by_form: dict[str, list[Curve]] = {}
    for cell, curve in curves.items():
        by_form.setdefault(cell.form, []).append(curve)
    if max(map(len, by_form.values())) == 1 or len(study.axes) > figures.MOST_LINES:
        panels: dict[str, Sequence[Curve]] = {curve.name: [curve] for curve in curves.values()}
    else:
        panels = {
            form: [
                Curve(Cell("", 0, cell.point).label, curve.x, curve.y, curve.best, curve.edges)
                for cell, curve in curves.items()
                if cell.form == form
            ]
            for form in by_form
        }
    if len(panels) <= _MOST_MULTIPLES:
        yield "sweep", figures.small_multiples(panels, x, y, caption)


def _sweep_curve(
    choice: Choice, numbers: Mapping[tuple[Cell, float], Sequence[float]], column: Column
) -> Curve:
    values = sorted(value for value in choice.means if value is not None)
    heights: list[Value] = []
    for value in values:
        metrics = numbers.get((choice.cell, value), [])
        is_finite = all(abs(metric) < float("inf") for metric in metrics)
        height: Value = choice.means[value]
        if len(metrics) > 1 and is_finite:
            height = mean_interval(metrics)
        heights.append(_scaled(height, column) or 0.0)
    edges = [choice.best] if choice.at_edge and choice.best is not None else []
    return Curve(choice.cell.label, values, heights, choice.best, edges)


def _kinds(resolver: Resolver, table: CellTable) -> list[str]:
    """What tells cells apart by color: the form where there are axes too; a base is gray."""
    has_axes = len(resolver.study.axes) > 1
    forms = set(resolver.study.forms)
    return [
        figures.REFERENCE if cell.form not in forms else (cell.form if has_axes else "")
        for cell in table.cells
    ]


def _scaled(value: Value | None, column: Column) -> Value | None:
    if isinstance(value, Estimate):
        return value.scaled(column.scale)
    return None if value is None else value * column.scale


def _file_name(text: str) -> str:
    return re.sub(r"[^\w-]+", "_", text)
