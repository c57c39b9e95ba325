"""A study's results: its trials joined with the rows of its ledger."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from research.studies.axes import variant_names
from research.studies.code import SAME_NUMBERS
from research.studies.ledger import FINISHED, Row
from research.studies.schedule import Lookup, Progress
from research.studies.study import TUNED
from research.studies.trials import BEFORE, Resolver, Trial

# counted from the base, so that it stands in no row
FORGETTING = "forgetting"


def find_row(resolver: Resolver, rows: Mapping[str, Row], trial: Trial) -> Row | None:
    """The row of a trial: of the code and data now, else of others that are known to give the same
    numbers or that the study accepts."""
    inputs, address = resolver.accepted(trial)
    codes = (*SAME_NUMBERS, *resolver.study.accepted_code)
    for candidate in (trial.address, address):
        if candidate in rows:
            return rows[candidate]
    for row in rows.values():
        known_inputs = row["inputs"] in (trial.inputs, inputs)
        if known_inputs and row["code"] in codes:
            return row
    return None


def lookup_in(resolver: Resolver, rows: Mapping[str, Row]) -> Lookup:
    """The metric of a trial by the ledger; not finite where it has diverged or failed.

    Raises (when called):
      ValueError: a trial that is finished has no such number.
    """
    metric = resolver.study.metric

    def lookup(trial: Trial) -> float | None:
        row = find_row(resolver, rows, trial)
        if row is None:
            return None
        if row["status"] != FINISHED or trial.stage == BEFORE:
            return math.inf
        if trial.way != TUNED:  # it has no training, and so not each number
            return float(row.get(metric, math.inf))
        if metric not in row:
            numbers = sorted(name for name, value in row.items() if isinstance(value, float))
            raise ValueError(f"no trial has the metric {metric!r}; there are: {', '.join(numbers)}")
        value = row[metric]
        return math.inf if value is None else float(value)

    return lookup


def stale_count(resolver: Resolver, rows: Mapping[str, Row], progress: Progress) -> int:
    """How many missing trials have a row of older code that the study does not accept."""
    inputs = {row["inputs"] for row in rows.values()}
    return sum(trial.inputs in inputs for trial in progress.missing)


def joined_rows(
    resolver: Resolver, rows: Mapping[str, Row], progress: Progress
) -> Iterator[dict[str, Any]]:
    """Every trial that has run: where it stands in the study, then its row."""
    for trial in progress.trials:
        row = find_row(resolver, rows, trial)
        if row is not None:
            place: dict[str, Any] = {"stage": trial.stage, "form": trial.cell.form}
            place |= variant_names(trial.cell.point)
            if trial.value is not None and resolver.sweep_key is not None:
                place[resolver.sweep_key] = trial.value
            yield {**row, **place, "cell": trial.cell.label, "seed": trial.seed} | forgetting(
                resolver, rows, row
            )


def number_of(resolver: Resolver, rows: Mapping[str, Row], row: Row, metric: str) -> float | None:
    """A number of a trial that has finished, `forgetting` too; None where it is not known."""
    value = row.get(metric)
    if value is None and metric == FORGETTING:
        value = forgetting(resolver, rows, row).get(FORGETTING)
    return None if value is None else float(value)


def forgetting(resolver: Resolver, rows: Mapping[str, Row], row: Row) -> dict[str, float]:
    """Bits per byte of the text after tuning minus before it; empty where one is not known."""
    for trial in resolver.before():
        before = find_row(resolver, rows, trial)
        if before is None or before is row or before.get("base") != row.get("base"):
            continue
        if _texts_asked(before) == _texts_asked(row):
            bits = (row.get("bits_per_byte"), before.get("bits_per_byte"))
            if bits[0] is not None and bits[1] is not None:
                return {FORGETTING: bits[0] - bits[1]}
    return {}


def _texts_asked(row: Row) -> Any:
    """Fingerprints of the texts that a model was asked by."""
    content = row.get("depends")
    return (json.loads(content) if isinstance(content, str) else content or {}).get("asked")
