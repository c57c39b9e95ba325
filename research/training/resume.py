"""Where a run stands when it is started: what its folder holds, and whether it is the same run."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from research.checkpoints import runs
from research.checkpoints.checkpointer import Checkpointer, library_versions
from research.checkpoints.runs import Run
from research.config import schema
from research.data.pipeline import Pipeline
from research.experiment import Experiment
from research.optim import extension
from research.optim.schedules import ScheduleConfig
from research.runtime import distributed
from research.training.summary import SUMMARY, Summary
from research.training.workdir import claim_workdir

# fields of an experiment that may change between two starts of one run: its number of steps, the
# mesh, and what is only measured or kept; opening the run compares the base's fingerprint, and
# `extension.extend` the learning rates
CHANGEABLE = frozenset(
    {
        "steps",
        "schedule",
        "init_from",
        "mesh",
        "sharding_rules",
        "offload",
        "checkpoint",
        "log_every",
        "max_skipped",
        "checks",
        "evaluate_every",
        "evaluate_split",
        "evaluate_tokens",
    }
)


@dataclasses.dataclass(frozen=True)
class Start:
    """Where a run begins.

    Attributes:
      step, seconds: what it has behind it; zeros if it is new.
      schedule: its learning rates, those of the steps behind it included.
      summary: of a finished run.
    """

    step: int
    seconds: float
    schedule: ScheduleConfig
    summary: Summary | None = None


def find_start(
    checkpointer: Checkpointer,
    experiment: Experiment,
    data: Pipeline,
    workdir: Path,
    claim: bool,
) -> Start:
    """Where the run begins.

    Args:
      claim: lock the folder, unless the run is finished and so left as it is. The run is then
        looked for again: another process may have gone on with it meanwhile.

    Raises:
      ValueError: another process is training there, or the folder holds another run, a run on
        other data, or one whose learning rates would bend.
    """
    start = _find_start(checkpointer, experiment, data, workdir)
    if claim and start.summary is None:
        claim_workdir(workdir)
        start = _find_start(checkpointer, experiment, data, workdir)
    return start


def _find_start(
    checkpointer: Checkpointer, experiment: Experiment, data: Pipeline, workdir: Path
) -> Start:
    step = checkpointer.latest_step() or 0
    if not step:
        return Start(0, 0.0, experiment.schedule)
    saved = runs.open_run(workdir, experiment.init_from)
    assert saved.experiment is not None  # imported models lie in no run's checkpoints
    metadata = saved.checkpoint.metadata()
    check_same_run(experiment, saved.experiment, workdir)
    check_same_data(metadata, data, workdir)
    schedule = find_schedule(experiment, saved.experiment, step, workdir)
    is_finished = step >= experiment.steps and (workdir / SUMMARY).exists()
    summary = Summary.read(workdir) if is_finished else None
    return Start(step, metadata["seconds"], schedule, summary)


def find_schedule(now: Experiment, then: Experiment, step: int, workdir: Path) -> ScheduleConfig:
    """The schedule that a run goes on with after `step` steps: see `extension.extend`.

    Raises:
      ValueError: its learning rates would bend, and the config does not say what is meant.
    """
    try:
        return extension.extend(
            extension.Course(then.schedule, then.steps),
            extension.Course(now.schedule, now.steps),
            step,
        )
    except ValueError as error:
        raise ValueError(f"{workdir} cannot go on at step {step}: {error}") from error


def check_same_run(now: Experiment, then: Experiment, workdir: Path) -> None:
    """Refuses to resume a folder with an experiment that would not give the same run.

    Raises:
      ValueError: naming the fields that differ.
    """
    changed_names = [
        field.name
        for field in dataclasses.fields(now)
        if field.name not in CHANGEABLE and getattr(now, field.name) != getattr(then, field.name)
    ]
    if changed_names:
        raise ValueError(
            f"{workdir} holds a run of another experiment ({', '.join(changed_names)} differ); "
            "choose another --workdir, or put the config back"
        )


def check_same_data(metadata: Mapping[str, Any], data: Pipeline, workdir: Path) -> None:
    """Refuses to resume on text or a tokenizer whose content is not what it was.

    Raises:
      ValueError: naming the sources that differ.
    """
    saved = metadata["data"]
    changed_names = [name for name, mark in data.fingerprints.items() if saved[name] != mark]
    if metadata["tokenizer"] != data.tokenizer.fingerprint():
        changed_names.append("the tokenizer")
    if changed_names:
        raise ValueError(
            f"{workdir} was trained on other content of {', '.join(changed_names)}; put it back, "
            "or choose another --workdir"
        )


def check_same_everywhere(
    experiment: Experiment, data: Pipeline, base: Run | None, workdir: Path, step: int
) -> None:
    """Compares what the processes of one run must have in common.

    Raises:
      ValueError: naming what differs, and the processes.
    """
    distributed.check_equal_across_processes(
        config=json.dumps(schema.to_dict(experiment), sort_keys=True),
        data=json.dumps(data.fingerprints),
        tokenizer=data.tokenizer.fingerprint(),
        base=base.fingerprint if base else "none",
        **{f"the last checkpoint in {workdir}": f"step {step}"},
        versions=json.dumps(library_versions()),
    )
