"""Which trials of a study train as one program, and how they do."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from typing import Any

import jax
from etils import epath

from research.config import schema
from research.sharding import MeshConfig
from research.studies.study import TUNED
from research.studies.trials import BEFORE, Trial
from research.training import choice
from research.training.group import Member, train_together
from research.training.numbers import without_numbers
from research.training.progress import StepSink
from research.training.session import Session
from research.training.summary import Summary

Outcome = Summary | Exception | None
Output = Callable[[], contextlib.AbstractContextManager[Any]]

# trials that an accelerator trains together, if that is faster and they fit
_ON_ACCELERATORS = 16


def default_size() -> int:
    """The most trials that train together where nobody says: on a processor each trains alone.

    One trial keeps its cores busy: the quickstart's four trials of LoRA took as long in one program
    as one after the other, and hold four times the memory.
    """
    return 1 if jax.default_backend() == "cpu" else _ON_ACCELERATORS


def group_key(trial: Trial) -> str | None:
    """Equal for trials whose programs may be one; None for one that trains alone.

    Alone are trials without training, those whose config shares a model among devices, and all of
    a run on several hosts.
    """
    experiment = trial.experiment
    mesh = experiment.mesh
    is_of_one_device = mesh in (MeshConfig(), MeshConfig(1)) and not experiment.offload
    if trial.way != TUNED or trial.stage == BEFORE or not is_of_one_device:
        return None
    if jax.process_count() > 1:
        return None
    content = schema.to_dict(without_numbers(experiment))
    return json.dumps([content, experiment.steps], sort_keys=True)


class Together:
    """Trains groups of trials, and remembers which are quicker one after the other."""

    def __init__(self, session: Session, size: int | None):
        """`size`: the most trials of a group; None: `default_size()`."""
        self.size = default_size() if size is None else size
        if self.size < 1:
            raise ValueError(f"--together is a number of trials from 1 on, not {size}")
        self._session = session
        self._alone: set[str] = set()

    def group_of(self, trials: Sequence[Trial]) -> list[Trial]:
        """The first trial, and those that may train with it, in their order."""
        key = group_key(trials[0])
        if self.size == 1 or key is None or key in self._alone:
            return [trials[0]]
        return [trial for trial in trials if group_key(trial) == key]

    def train(
        self,
        trials: Sequence[Trial],
        folders: Sequence[epath.Path],
        outputs: Sequence[Output],
        sinks: Sequence[StepSink],
    ) -> tuple[list[Outcome], str]:
        """What became of each of the trials, and how they were mapped.

        None is a trial that is to be trained alone.
        """
        members = [
            Member(trial.experiment, folder, output, sink)
            for trial, folder, output, sink in zip(trials, folders, outputs, sinks, strict=True)
        ]
        chosen_way = train_together(members, self._session, choice.probe)
        kind = chosen_way.kind if chosen_way is not None else None
        if chosen_way is not None and kind is None:
            self._alone.add(group_key(trials[0]) or "")
        return [member.outcome for member in members], kind or ""
