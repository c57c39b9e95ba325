"""The table of a study: a row for each cell, with means and intervals over its seeds."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from research.reports.statistics import Estimate, mean_interval
from research.reports.tables import Column
from research.studies.ledger import FINISHED, Row
from research.studies.results import find_row, forgetting
from research.studies.schedule import Progress
from research.studies.trials import Cell, Resolver, Trial

# columns that are no scores
_COSTS = ("trainable_parameters", "tokens", "flops", "seconds", "artifact_bytes", "program_bytes")
# column -> how a table prints it; those that no trial has are left out
MEASURES = (
    Column("heldout_loss", "held-out loss", "nats", format=".4f"),
    Column("quality", "right answers", "%", 100, ".1f"),
    Column("bits_per_byte", "text", "bits/byte", format=".3f"),
    Column("forgetting", "forgetting", "bits/byte", format="+.3f", tip="after minus before"),
    Column("loss", "training loss", "nats", format=".4f", tip="of the last step"),
    Column("trainable_parameters", "trained", "parameters", format="si"),
    Column("tokens", "text read", "tokens", format="si"),
    Column("flops", "compute", "FLOPs", format="si"),
    Column("seconds", "time", "s", format=".1f"),
    Column("artifact_bytes", "on disk", "MB", 1e-6, ".2f", tip="of the model, beside its base"),
    Column("program_bytes", "memory", "GiB", 2**-30, ".2f", tip="peak of the compiled program"),
)


@dataclasses.dataclass(frozen=True)
class CellTable:
    """The cells of a stage with what they measured."""

    # the stage that it shows: the last one that has results
    stage: str
    # of each line, `cells[n]` of `lines[n]`
    cells: Sequence[Cell]
    lines: Sequence[Mapping[str, Any]]
    columns: Sequence[Column]


def cell_table(resolver: Resolver, rows: Mapping[str, Row], progress: Progress) -> CellTable:
    """The table of a study: each cell at its best value, and the bases before they were tuned."""
    study = resolver.study
    stages = [stage.name for stage in study.stages if stage.name in progress.choices]
    if not stages:
        stages = [study.stages[0].name]
    stage = stages[-1]
    edges = {choice.cell for choice in progress.choices.get(stage, ()) if choice.at_edge}
    lines = []
    trials_of_cells = {trial.cell: [trial] for trial in resolver.before()}
    trials_of_cells |= _by_cell(progress, stage)
    for cell, trials in trials_of_cells.items():
        line = _line(resolver, rows, trials)
        if line is not None:
            if cell in edges and "value" in line:
                line["value"] += " (edge)"
            lines.append((cell, {"cell": cell.label, **line}))
    if len(study.axes) == 1:  # forms alone: the best first
        lines.sort(key=lambda line: _rank(line[1].get(study.metric), study.goal))
    content = [line for _, line in lines]
    return CellTable(stage, [cell for cell, _ in lines], content, _columns(resolver, content))


def title(column: Column) -> str:
    """The header of a column with its unit."""
    return f"{column.header} ({column.unit})" if column.unit else column.header


def measure(key: str) -> Column:
    """How a number of a trial is printed."""
    return next((column for column in MEASURES if column.key == key), Column(key, key))


def _rank(value: float | Estimate | None, goal: str) -> float:
    """Lowest first; bases, which lack the metric, before all."""
    if value is None:
        return -math.inf
    number = value.value if isinstance(value, Estimate) else value
    return number if goal == "lowest" else -number


def _by_cell(progress: Progress, stage: str) -> dict[Cell, list[Trial]]:
    """The trials of each cell at its best value, or at all of them where that is not known."""
    best = {choice.cell: choice.best for choice in progress.choices.get(stage, ())}
    cells: dict[Cell, list[Trial]] = {}
    for trial in progress.trials:
        if trial.stage == stage and best.get(trial.cell, trial.value) == trial.value:
            cells.setdefault(trial.cell, []).append(trial)
    return cells


def _line(
    resolver: Resolver, rows: Mapping[str, Row], trials: Sequence[Trial]
) -> dict[str, Any] | None:
    cell_rows = [row for trial in trials if (row := find_row(resolver, rows, trial)) is not None]
    if not cell_rows:
        return None
    finished = [
        {**row, **forgetting(resolver, rows, row)} for row in cell_rows if row["status"] == FINISHED
    ]
    line: dict[str, Any] = {"n": len(finished)}
    if len(finished) < len(cell_rows):
        line["not finished"] = len(cell_rows) - len(finished)
    values = sorted({trial.value for trial in trials if trial.value is not None})
    if len(values) == 1:
        line["value"] = f"{values[0]:g}"
    for key in {column.key for column in MEASURES} | _own_metrics(resolver):
        numbers = [float(row[key]) for row in finished if row.get(key) is not None]
        if key in _COSTS and numbers:  # a machine's noise is no interval of a cost
            line[key] = statistics.median(numbers)
        elif len(numbers) > 1 and len(set(numbers)) > 1:
            line[key] = mean_interval(numbers)
        elif numbers:
            line[key] = numbers[0]
    if len(finished) == 1 and "quality" in finished[0]:  # over questions: there is one seed
        only = finished[0]
        low, high, count = only["quality_low"], only["quality_high"], only["questions"]
        line["quality"] = Estimate(only["quality"], low, high, count)
    return line


def _own_metrics(resolver: Resolver) -> set[str]:
    """The numbers that this study is about: its metric and those of its comparisons."""
    metrics = [getattr(comparison, "metric", None) for comparison in resolver.study.comparisons]
    return {resolver.study.metric, *(metric for metric in metrics if metric)}


def _columns(resolver: Resolver, lines: Sequence[Mapping[str, Any]]) -> list[Column]:
    study = resolver.study
    columns = [Column("cell", "cell")]
    if study.sweep is not None:
        columns.append(Column("value", f"best {study.sweep.key.rpartition('.')[2]}"))
    columns += [Column("n", "n", tip="seeds"), Column("not finished", "not finished")]
    columns += sorted(MEASURES, key=lambda column: column.key != study.metric)
    others = sorted(_own_metrics(resolver) - {column.key for column in MEASURES})
    columns += [Column(key, key) for key in others]
    present = {key for line in lines for key in line}
    if "forgetting" in present and study.metric != "bits_per_byte":
        present.discard("bits_per_byte")
    if "heldout_loss" in present:
        present.discard("loss")
    return [column for column in columns if column.key in present]
