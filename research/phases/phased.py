"""A run in parts: supervised tuning and then preferences, say, each an experiment of its own.

A phase is the experiment with some changes. It starts where the phase before it ended: with its
model, or its adapters; with its optimizer's state where the phase keeps it; at the batch behind the
last that was read, where it reads the same data; and with another seed, so that what is attached
anew differs. Nothing else of a run knows of phases.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from research.checkpoints.step_folders import PHASES
from research.config import paths
from research.config.schema import Name
from research.experiment import Experiment
from research.phases.rollouts import RolloutConfig
from research.training.workdir import CHECKPOINTS

MERGED = "merged"
# Of a phase's name at most: files and folders are called by it, and have 255 bytes.
_NAME_BYTES = 200


@dataclasses.dataclass(frozen=True)
class Phase:
    """A part of a run."""

    # its name, which its folder has too
    name: Name
    # path of a field of the experiment, such as `schedule.learning_rate` -> its value in this phase
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    # answers that its start gives, which its `data.sources` are then; None: they are those of the
    # config
    rollouts: RolloutConfig | None = None
    # start from a base into which the adapters of the phase before were merged (as ReLoRA does,
    # arXiv:2307.05695); else they go on
    merge: bool = False


@dataclasses.dataclass(frozen=True)
class PhasedExperiment(Experiment):
    """An experiment, or the common part of several in a row."""

    # the parts of the run, in order; none: it is one experiment
    phases: tuple[Phase, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        names = [phase.name for phase in self.phases]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"phases: {', '.join(twice)} is there twice; give each its own name")
        if long := next((n for n in names if len(n.encode()) > _NAME_BYTES), None):
            raise ValueError(f"phases: {long!r:.40} is longer than {_NAME_BYTES} bytes")
        if self.phases and self.phases[0].merge:
            raise ValueError(f"phases[0].merge: no phase comes before {names[0]}")

    @property
    def common(self) -> Experiment:
        """What all phases have in common, or the only experiment."""
        fields = [field.name for field in dataclasses.fields(Experiment)]
        return Experiment(**{name: getattr(self, name) for name in fields})

    def folder(self, number: int) -> str:
        """Where a phase has its run, in the whole run's folder."""
        return f"{PHASES}/{number + 1}_{self.phases[number].name}"

    def start(self, number: int, workdir: Path) -> str | None:
        """What a phase starts from: what the one before it leaves behind.

        Args:
          workdir: the whole run's folder.
        """
        changes = self.phases[number].changes
        if number == 0 or "init_from" in changes:
            return changes.get("init_from", self.init_from)
        before = workdir / self.folder(number - 1)
        if self.phases[number].merge:
            return str(before / MERGED)
        if not changes.get("keep_optimizer", self.keep_optimizer):
            return str(before)
        steps = self.phases[number - 1].changes.get("steps", self.steps)
        return str(before / CHECKPOINTS / str(steps))  # a finished model has no optimizer

    def rollouts_file(self, number: int, workdir: Path) -> Path:
        """Where a phase's rollouts are written."""
        return workdir / "rollouts" / f"{number + 1}_{self.phases[number].name}.jsonl"

    def experiments(self, workdir: Path) -> list[Experiment]:
        """The experiment of each phase.

        Args:
          workdir: the whole run's folder.

        Raises:
          ValueError: changes that do not fit the experiment; names the phase.
        """
        experiments: list[Experiment] = []
        for number, phase in enumerate(self.phases):
            changes = {paths.full_path(Experiment, key): x for key, x in phase.changes.items()}
            if number:
                start = {"model": None, "tokenizer": None, "seed": self.seed + number}
                changes = start | changes | {"init_from": self.start(number, workdir)}
            if phase.rollouts is not None:
                path = str(self.rollouts_file(number, workdir))
                source = {"name": "rollouts", "kind": "jsonl", "path": path, "format": "rollouts"}
                changes |= {"data.sources": [source]}
            try:
                experiment = paths.replace(self.common, changes)
            except ValueError as error:
                raise ValueError(f"phases[{number}] ({phase.name}): {error}") from error
            if "data.first_batch" not in changes and phase.rollouts is None:
                experiment = _behind(experiment, experiments)
            experiments.append(experiment)
        return experiments

    def planned(self) -> dict[str, Experiment]:
        """Each phase by its name before there is a run: on the base that the first starts from,
        whose shapes are those of all."""
        common = {"model": self.model, "tokenizer": self.tokenizer, "init_from": self.init_from}
        return {
            phase.name: paths.replace(experiment, {} if "init_from" in phase.changes else common)
            for phase, experiment in zip(self.phases, self.experiments(Path()), strict=True)
        }


def _behind(experiment: Experiment, earlier: list[Experiment]) -> Experiment:
    """The experiment from the batch on that is behind the last that an earlier one read of the
    same data."""
    data = experiment.data
    for before in reversed(earlier):
        if dataclasses.replace(before.data, first_batch=data.first_batch) == data:
            first_batch = before.data.first_batch + before.steps
            data = dataclasses.replace(data, first_batch=first_batch)
            return dataclasses.replace(experiment, data=data)
    return experiment
