"""What a study will cost before it runs: trials, FLOPs, and hours by what earlier trials took."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping

import jax

from research.runtime.accelerators import peak_flops_per_second
from research.studies.ledger import FINISHED, Row
from research.studies.schedule import Progress
from research.studies.trials import Cell, Resolver

# of the machine's peak, where no trial was measured yet: small models on a CPU reach about this
_ASSUMED_SHARE = 0.3


@dataclasses.dataclass(frozen=True)
class StageCost:
    """The cost of a stage's trials."""

    stage: str
    cells: int
    # at the least, and if every sweep grows as far as it may
    trials: int
    most_trials: int
    # of which the ledger has
    done_count: int
    # of `trials`
    flops: float
    # of what is missing of `trials`
    missing_flops: float


def stage_costs(resolver: Resolver, progress: Progress) -> list[StageCost]:
    """The cost of every stage; of stages to come, as many cells as the earlier ones let through."""
    study = resolver.study
    missing = {trial.address for trial in progress.missing}
    cells = list(resolver.cells)
    costs = []
    for number, stage in enumerate(study.stages):
        stage_trials = [trial for trial in progress.trials if trial.stage == stage.name]
        if stage_trials:
            flops = {trial.address: resolver.flops(stage, trial.cell) for trial in stage_trials}
            costs.append(
                StageCost(
                    stage.name,
                    cells=len({trial.cell for trial in stage_trials}),
                    trials=len(stage_trials),
                    most_trials=len(stage_trials) + _growth(resolver, progress, number, len(cells)),
                    done_count=len(stage_trials) - len(missing & set(flops)),
                    flops=sum(flops[trial.address] for trial in stage_trials),
                    missing_flops=sum(flops[address] for address in missing & set(flops)),
                )
            )
        else:
            counts = [len(stage.seeds) * _values(resolver, cell, number) for cell in cells]
            flops_of_all = sum(
                count * resolver.flops(stage, cell)
                for count, cell in zip(counts, cells, strict=True)
            )
            most = sum(counts) + _growth(resolver, progress, number, len(cells))
            costs.append(
                StageCost(stage.name, len(cells), sum(counts), most, 0, flops_of_all, flops_of_all)
            )
        cells = cells[: max(1, math.ceil(stage.keep * len(cells)))]
    return costs


def seconds_per_flop(rows: Mapping[str, Row]) -> tuple[float, str] | None:
    """(seconds, how it is known): the median of finished trials on such devices, or a guess.

    None where this machine's peak is not known either.
    """
    kind = jax.local_devices()[0].device_kind
    measured = [
        row["seconds"] / row["flops"]
        for row in rows.values()
        if row["status"] == FINISHED and row["device"] == kind and row.get("flops")
    ]
    if measured:
        return statistics.median(measured), f"the median of {len(measured)} trials on {kind}"
    peak = peak_flops_per_second()
    if peak is None:
        return None
    return 1 / (_ASSUMED_SHARE * peak), f"a guess, {_ASSUMED_SHARE:.0%} of the peak of {kind}"


def _values(resolver: Resolver, cell: Cell, number: int) -> int:
    """How many values of the sweep a cell of a stage to come begins with."""
    study = resolver.study
    if study.sweep is None:
        return 1
    return study.stages[number - 1].keep_values if number else len(study.sweep_values(cell.form))


def _growth(resolver: Resolver, progress: Progress, number: int, cells: int) -> int:
    """How many trials the sweeps may still add to a stage."""
    sweep = resolver.study.sweep
    if sweep is None or number or resolver.study.stages[0].name in progress.choices:
        return 0
    return cells * sweep.max_growth * len(resolver.study.stages[0].seeds)
