"""Which trials a study needs next, as a pure function of its trials' results so far.

The state of a study is its ledger and nothing else: whoever asks again, on this machine or another,
after a kill or a merge of two ledgers, gets the same answer.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

from research.studies.study import Stage, Study
from research.studies.trials import Cell, Resolver, Trial

# the metric of a trial; not finite where it has diverged or failed; None: not there yet
Lookup = Callable[[Trial], float | None]


@dataclasses.dataclass(frozen=True)
class Choice:
    """What a stage found for one cell."""

    cell: Cell
    # value of the sweep -> mean of the metric over the stage's seeds
    means: Mapping[float | None, float]
    # the best first; those that go on
    values: tuple[float | None, ...]
    # whether the best value is the smallest or the largest of those that were tried at all
    at_edge: bool

    @property
    def best(self) -> float | None:
        return self.values[0]


@dataclasses.dataclass(frozen=True)
class Progress:
    """Where a study stands."""

    # the stage whose trials are missing; None: the study is finished
    stage: Stage | None
    # what to run now, in order
    missing: tuple[Trial, ...]
    # every trial that was asked for so far, in order
    trials: tuple[Trial, ...]
    # name of a finished stage -> what it found, in the order of the cells
    choices: Mapping[str, tuple[Choice, ...]]

    @property
    def is_finished(self) -> bool:
        return self.stage is None


def plan(resolver: Resolver, lookup: Lookup) -> Progress:
    """The progress of a study whose trials have these results.

    Raises:
      ValueError: two cells are the same run.
    """
    study = resolver.study
    cells: Sequence[Cell] = resolver.cells
    grids: dict[Cell, tuple[float | None, ...]] = {
        cell: study.sweep_values(cell.form) or (None,) for cell in cells
    }
    edges: dict[Cell, bool] = {}
    trials: list[Trial] = []
    choices: dict[str, tuple[Choice, ...]] = {}
    _check_different(resolver)
    trials += resolver.before()
    unasked = [trial for trial in trials if lookup(trial) is None]
    for number, stage in enumerate(study.stages):
        # no choice waits for what the bases answer untuned
        missing = list(unasked) if number == 0 else []
        stage_choices: list[Choice] = []
        stage_trials: list[Trial] = []
        is_last = number == len(study.stages) - 1
        for cell in cells:
            if not (is_last or study.forms[cell.form].is_tuned):
                continue  # there is nothing to screen
            # only the first stage grows: later ones confirm
            growth = study.sweep.max_growth if study.sweep and number == 0 else 0
            choice, cell_trials, unfinished = _search(
                resolver, stage, cell, grids[cell], growth, lookup
            )
            stage_trials += cell_trials
            missing += unfinished
            if choice is not None:
                at_edge = choice.at_edge if number == 0 else edges.get(cell, False)
                edges[cell] = at_edge
                stage_choices.append(dataclasses.replace(choice, at_edge=at_edge))
        trials += stage_trials
        if missing:
            return Progress(stage, tuple(missing), tuple(trials), choices)
        choices[stage.name] = tuple(stage_choices)
        best_cells = _best_cells(study, stage, stage_choices)
        cells = [c for c in cells if c in best_cells or not study.forms[c.form].is_tuned]
        grids |= {choice.cell: choice.values for choice in stage_choices}
    return Progress(None, (), tuple(trials), choices)


def _search(
    resolver: Resolver,
    stage: Stage,
    cell: Cell,
    grid: tuple[float | None, ...],
    growth: int,
    lookup: Lookup,
) -> tuple[Choice | None, list[Trial], list[Trial]]:
    """(what the stage found, None if trials are missing; its trials; the missing ones)."""
    study = resolver.study
    sign = 1.0 if study.goal == "lowest" else -1.0
    while True:
        trials = [
            resolver.trial(stage, cell, value, seed) for value in grid for seed in stage.seeds
        ]
        results = {trial.address: lookup(trial) for trial in trials}
        missing = [trial for trial in trials if results[trial.address] is None]
        if missing:
            return None, trials, missing
        means = {
            value: _mean([results[trial.address] for trial in trials if trial.value == value])
            for value in grid
        }

        def badness(value: float | None, means: Mapping[float | None, float] = means) -> float:
            return sign * means[value] if math.isfinite(means[value]) else math.inf

        order = sorted(grid, key=lambda value: (badness(value), value or 0.0))
        best = order[0]
        numbers = tuple(sorted(value for value in grid if value is not None))
        at_edge = best is not None and best in (numbers[0], numbers[-1])
        if not at_edge or growth == 0 or study.sweep is None or best is None:
            best_values = tuple(order[: stage.keep_values])
            return Choice(cell, means, best_values, at_edge), trials, []
        grid, growth = study.sweep.extend(numbers, best), growth - 1


def _mean(results: Sequence[float | None]) -> float:
    numbers = [math.inf if result is None else result for result in results]
    return sum(numbers) / len(numbers) if all(map(math.isfinite, numbers)) else math.inf


def _best_cells(study: Study, stage: Stage, stage_choices: Sequence[Choice]) -> list[Cell]:
    """The cells that go on, in their order: at least one."""
    sign = 1.0 if study.goal == "lowest" else -1.0

    def badness(choice: Choice) -> float:
        mean = choice.means[choice.best]
        return sign * mean if math.isfinite(mean) else math.inf

    count = max(1, math.ceil(stage.keep * len(stage_choices)))
    best = {choice.cell for choice in sorted(stage_choices, key=badness)[:count]}
    return [choice.cell for choice in stage_choices if choice.cell in best]


def _check_different(resolver: Resolver) -> None:
    """Raises ValueError if two cells would be the same run in the last stage.

    In earlier ones they may be: a form that only takes more steps is screened like another.
    """
    stage = resolver.study.stages[-1]
    value = 1.0 if resolver.study.sweep else None
    labels: dict[str, str] = {}
    for cell in resolver.cells:
        inputs = resolver.trial(stage, cell, value, stage.seeds[0]).inputs
        if inputs in labels:
            raise ValueError(
                f"two cells are the same run: {labels[inputs]!r} and {cell.label!r}; a form or an "
                "axis changes nothing"
            )
        labels[inputs] = cell.label
