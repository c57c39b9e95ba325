"""Hours and money of a study, here or on accelerators, from the fewest to the most trials."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
from tqdm import tqdm

from research.config import schema
from research.preflight import examine
from research.preflight.report import Report
from research.reports.tables import Column, format_si, text_table
from research.runtime import accelerators
from research.studies.estimates import CellCost, StageCost
from research.studies.ledger import FINISHED, Row
from research.training.numbers import without_numbers

# of the machine's peak, where no trial was measured yet: small models on a CPU reach about this
_ASSUMED_SHARE = 0.3


@dataclasses.dataclass(frozen=True)
class Place:
    """Where trials run: how long one takes, and what an hour costs."""

    name: str
    # seconds of one trial of a cell
    seconds: Callable[[CellCost], float]
    # how they are known
    source: str
    # processes that share one machine, and such machines
    workers: int = 1
    machines: int = 1
    # of one machine; None: not known
    price_per_hour: float | None = None
    currency: str = ""
    price_source: str = ""
    # of one machine; 0: they are not what is paid for
    chips: int = 0


def describe(costs: Sequence[StageCost], place: Place | None) -> str:
    """Trials, FLOPs, hours and money of every stage, then of all that is missing."""
    lines = []
    for cost in costs:
        line: dict[str, Any] = {
            "stage": cost.stage,
            "cells": len(cost.cells),
            "trials": _interval((cost.trials, cost.most_trials), str),
            "done": cost.done_count,
            "FLOPs": _interval((cost.flops, cost.most_flops), format_si),
        }
        if place is not None:
            names = ("trials", "most_trials")
            counts = [[(cell, getattr(cell, name)) for cell in cost.cells] for name in names]
            seconds = [_machine_seconds(place, each) for each in counts]
            line["hours"] = _interval(seconds, tqdm.format_interval)
        lines.append(line)
    cells = [cell for cost in costs for cell in cost.cells]
    counts = [[(c, getattr(c, name)) for c in cells] for name in ("missing", "most_missing")]
    trials = _interval((sum(n for _, n in each) for each in counts), str)
    flops = _interval((sum(c.flops * n for c, n in each) for each in counts), format_si)
    text = f"{text_table(lines)}\n\nmissing: {trials} trials, {flops} FLOPs"
    if place is None:
        return text
    return "\n".join([text, *_totals(place, counts)])


def _totals(place: Place, counts: Sequence[Sequence[tuple[CellCost, int]]]) -> list[str]:
    seconds = [_machine_seconds(place, each) for each in counts]
    lines = [f"{_interval(seconds, tqdm.format_interval)} on {place.name}, by {place.source}"]
    if place.machines > 1:
        # no shorter than the longest trial
        longest = [max((place.seconds(c) for c, n in each if n), default=0.0) for each in counts]
        apart = [max(s / place.machines, one) for s, one in zip(seconds, longest, strict=True)]
        lines.append(f"{_interval(apart, tqdm.format_interval)} on {place.machines} of them")
    hours = [each / 3600 for each in seconds]
    if place.chips:
        lines.append(f"{_interval((place.chips * h for h in hours), _short)} chip-hours")
    if place.price_per_hour is not None:
        money = _interval((place.price_per_hour * h for h in hours), _money)
        unit = place.currency or f"at {place.price_per_hour:g} an hour"
        lines.append(f"{money} {unit}{place.price_source}")
    return lines


def _machine_seconds(place: Place, counts: Sequence[tuple[CellCost, int]]) -> float:
    """Seconds of one machine for so many trials of each cell."""
    return sum(place.seconds(cell) * count for cell, count in counts) / place.workers


def here(
    rows: Mapping[str, Row],
    workers: int = 1,
    machines: int = 1,
    price_per_hour: float | None = None,
) -> Place | None:
    """This machine, by what finished trials took on as many of its cores, else by a guess.

    None where its peak is not known either.
    """
    kind = jax.local_devices()[0].device_kind
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    own_cores = max(1, cores // workers)
    speeds: dict[int, list[float]] = {}
    for row in rows.values():
        if row["status"] == FINISHED and row["device"] == kind and row.get("flops"):
            speed = row["seconds"] / row["flops"]
            speeds.setdefault(row.get("cores") or cores, []).append(speed)
    name = f"this machine, {workers} at a time" if workers > 1 else "this machine"
    if own_cores in speeds:
        measured = speeds[own_cores]
        per_flop = statistics.median(measured)
        source = f"the median of {len(measured)} trials on {kind} with {own_cores} cores"
    elif speeds:  # as if every core did as much
        measured = [speed * n / own_cores for n, each in speeds.items() for speed in each]
        per_flop = statistics.median(measured)
        source = f"the median of {len(measured)} trials on {kind}, counted by the core"
    elif (peak := accelerators.peak_flops_per_second()) is not None:
        per_flop = workers / (_ASSUMED_SHARE * peak)
        source = f"a guess, {_ASSUMED_SHARE:.0%} of the peak of {kind}"
    else:
        return None
    return Place(
        name,
        lambda cost: cost.flops * per_flop,
        f"{source}; training alone",
        workers,
        machines,
        price_per_hour,
    )


class Accelerators:
    """Chips of one topology, on which every trial is examined before it runs."""

    def __init__(self, topology: str, prices: examine.Prices, share: float, machines: int = 1):
        """Finds the chips.

        Args:
          topology: such as v5e:2x4; a trial has all of it.
          share: how much of the roofline's speed trials are taken to reach.
          machines: so many such topologies side by side.

        Raises:
          ValueError: an unknown version, or a shape that it does not come in.
        """
        self.has_compiler = importlib.util.find_spec("libtpu") is not None
        find = accelerators.get_topology if self.has_compiler else accelerators.plan_topology
        self._topology = find(topology)
        self._prices, self._share, self._machines = prices, share, machines
        self._reports: dict[str, Report] = {}

    def examine(self, costs: Sequence[StageCost]) -> Sequence[tuple[CellCost, Report]]:
        """A report for every cell of every stage; cells that differ in numbers alone share one.

        Raises:
          ValueError, FileNotFoundError: as `examine.examine`.
        """
        cells = [cell for cost in costs for cell in cost.cells if cell.flops]
        for cell in tqdm(cells, disable=None, desc="examining", leave=False):
            key = _program_key(cell)
            if key not in self._reports:
                self._reports[key] = self._examine(cell)
        return [(cell, self._reports[_program_key(cell)]) for cell in cells]

    def _examine(self, cell: CellCost) -> Report:
        if self.has_compiler:
            return examine.examine(cell.experiment, self._topology, self._prices)
        return examine.plan(cell.experiment, self._topology, self._prices)

    def place(self) -> Place:
        """The chips, once every cell is examined and fits."""
        version = self._topology.name.partition(":")[0]
        price = self._prices.chip_hour.get(version)
        how = "the TPU compiler's memory" if self.has_compiler else "no TPU compiler: closed form"
        return Place(
            self._topology.name,
            self._seconds,
            f"{self._share:.0%} of the roofline's speed ({how}); training alone",
            machines=self._machines,
            price_per_hour=None if price is None else price * self._topology.chips,
            currency=self._prices.currency,
            price_source=f" (prices of {self._prices.date}, {self._prices.what})",
            chips=self._topology.chips,
        )

    def _seconds(self, cell: CellCost) -> float:
        if not cell.flops:  # nothing is trained
            return 0.0
        estimate = self._reports[_program_key(cell)].estimate
        assert estimate is not None  # else the plan ends before
        return cell.experiment.steps * estimate.step_seconds / self._share


def cell_table(reports: Sequence[tuple[CellCost, Report]]) -> str:
    """Whether the trials of each cell fit, and how fast they are at best."""
    columns = [
        Column("cell", "cell"),
        Column("fits", "fits"),
        Column("resident", "between steps", "GiB", format=".2f"),
        Column("peak", "peak", "GiB", format=".2f", tip="by the compiler"),
        Column("limit", "of", "GiB", format=".2f"),
        Column("step", "step at best", "s", format=".3g"),
        Column("bound", "bound by"),
        Column("why", "why not"),
    ]
    lines = []
    for cell, report in {cell.cell: (cell, report) for cell, report in reports}.values():
        estimate, workload = report.estimate, report.workload
        line: dict[str, Any] = {"cell": cell.cell.label, "fits": "yes" if report.fits else "no"}
        if workload is not None:
            line["limit"] = workload.limit_gib
        if estimate is not None:
            parts = (estimate.weights_gib, estimate.adapters_gib, estimate.optimizer_gib)
            line |= {"resident": sum(parts), "step": estimate.step_seconds}
            line["bound"] = estimate.bound_by
        line["peak"] = report.memory.peak_gib
        line["why"] = (report.memory.why or "").splitlines()[0][:200] if report.memory.why else ""
        lines.append(line)
    present = [c for c in columns if any(line.get(c.key) not in (None, "") for line in lines)]
    return text_table([{c.key: line.get(c.key) for c in present} for line in lines], present)


def _program_key(cell: CellCost) -> str:
    """What of a trial decides its program's shapes: neither numbers nor which records it reads."""
    content = schema.to_dict(without_numbers(cell.experiment))
    data = {key: value for key, value in content["data"].items() if key != "sources"}
    return json.dumps(content | {"data": data}, sort_keys=True)


def _interval(ends: Iterable[float], text: Callable[[Any], str]) -> str:
    low, high = ends
    return text(low) if text(low) == text(high) else f"{text(low)} to {text(high)}"


def _short(number: float) -> str:
    return f"{number:.3g}" if number < 1000 else f"{number:,.0f}"


def _money(amount: float) -> str:
    return f"{amount:,.2f}" if 0.1 <= amount < 100 else _short(amount)
