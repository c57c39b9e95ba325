"""How many trials a study needs, at least and at most, and their FLOPs, before anything runs."""

from __future__ import annotations

import dataclasses
import math

from research.experiment import Experiment
from research.studies.schedule import Progress
from research.studies.trials import Cell, Resolver


@dataclasses.dataclass(frozen=True)
class CellCost:
    """The trials of one cell in one stage."""

    stage: str
    cell: Cell
    # at the least, and if its sweep grows as far as it may
    trials: int
    most_trials: int
    # of `trials`, those that the ledger has
    done_count: int
    # one trial: its config at the first value of the sweep, and its model FLOPs
    experiment: Experiment
    flops: float

    @property
    def missing(self) -> int:
        return self.trials - self.done_count

    @property
    def most_missing(self) -> int:
        return self.most_trials - self.done_count


@dataclasses.dataclass(frozen=True)
class StageCost:
    """The trials of a stage."""

    stage: str
    cells: tuple[CellCost, ...]

    @property
    def trials(self) -> int:
        return sum(cell.trials for cell in self.cells)

    @property
    def most_trials(self) -> int:
        return sum(cell.most_trials for cell in self.cells)

    @property
    def done_count(self) -> int:
        return sum(cell.done_count for cell in self.cells)

    @property
    def flops(self) -> float:
        """Of all trials, at the least."""
        return sum(cell.trials * cell.flops for cell in self.cells)

    @property
    def most_flops(self) -> float:
        return sum(cell.most_trials * cell.flops for cell in self.cells)


def stage_costs(resolver: Resolver, progress: Progress) -> list[StageCost]:
    """The cost of every stage; of stages to come, as many cells as the earlier ones let through."""
    missing = {trial.address for trial in progress.missing}
    cells = list(resolver.cells)
    costs = []
    for number, stage in enumerate(resolver.study.stages):
        trials = [trial for trial in progress.trials if trial.stage == stage.name]
        cell_costs = []
        for cell in dict.fromkeys(trial.cell for trial in trials) if trials else cells:
            own = {trial.address for trial in trials if trial.cell == cell}
            count = len(own) if trials else len(stage.seeds) * _values(resolver, cell, number)
            if not count:  # it comes in a later stage
                continue
            value = next(iter(resolver.study.sweep_values(cell.form)), None)
            cell_costs.append(
                CellCost(
                    stage.name,
                    cell,
                    count,
                    max(count, _most(resolver, progress, cell, number)),
                    done_count=len(own - missing),
                    experiment=resolver.trial(stage, cell, value, stage.seeds[0]).experiment,
                    flops=resolver.flops(stage, cell),
                )
            )
        costs.append(StageCost(stage.name, tuple(cell_costs)))
        cells = cells[: max(1, math.ceil(stage.keep * len(cells)))]
    return costs


def _values(resolver: Resolver, cell: Cell, number: int) -> int:
    """How many values of the sweep a cell of a stage to come begins with."""
    study = resolver.study
    if not study.forms[cell.form].is_tuned:  # asked once, at the end
        return int(number == len(study.stages) - 1)
    if study.sweep is None:
        return 1
    return study.stages[number - 1].keep_values if number else len(study.sweep_values(cell.form))


def _most(resolver: Resolver, progress: Progress, cell: Cell, number: int) -> int:
    """The trials of a cell in a stage, if its sweep grows as far as it may."""
    study, stage = resolver.study, resolver.study.stages[number]
    is_open = number == 0 and stage.name not in progress.choices
    if study.sweep is None or not is_open or not study.forms[cell.form].is_tuned:
        return 0
    values = len(study.sweep_values(cell.form)) + study.sweep.max_growth
    return values * len(stage.seeds)
