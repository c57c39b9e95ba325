"""Where a run stands when it is started: what its folder holds, and whether it is the same run."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from research.checkpoints import runs
from research.checkpoints.checkpoint import Checkpoint, CheckpointError
from research.checkpoints.checkpointer import Checkpointer, library_versions
from research.checkpoints.runs import Run
from research.checkpoints.step_folders import other_names, scan
from research.config import schema
from research.data.pipeline import Pipeline
from research.experiment import Experiment
from research.optim import extension
from research.optim.schedules import ScheduleConfig
from research.runtime import distributed, files, storage
from research.training import continuation
from research.training.metric_steps import Progressions, describe_difference
from research.training.metrics import METRICS, read_metrics
from research.training.program import Program
from research.training.summary import SUMMARY, Summary
from research.training.workdir import CHECKPOINTS, MODEL, claim_workdir

log = logging.getLogger(__name__)

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
        "evaluation",
    }
)


@dataclasses.dataclass(frozen=True)
class Start:
    """Where a run begins.

    Attributes:
      step, seconds: what it has behind it; zeros if it is new.
      schedule: its learning rates, those of the steps behind it included.
      metrics_steps: which steps its metrics had then, see `metric_steps`, or how many lines, in
        checkpoints of old; None: its checkpoint does not say.
      summary: of a finished run.
      note: why the end of a run is to be made once more, for its user.
    """

    step: int
    seconds: float
    schedule: ScheduleConfig
    metrics_steps: Progressions | int | None = None
    summary: Summary | None = None
    note: str = ""


def find_start(
    checkpointer: Checkpointer,
    program: Program,
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
        other data, or one whose learning rates would bend; a line of its metrics is broken.
    """
    start = _find_start(checkpointer, program, data, workdir)
    if claim and start.summary is None:
        claim_workdir(workdir)
        start = _find_start(checkpointer, program, data, workdir)
    if start.summary is None:
        check_steps(program.experiment, data, workdir, start.step)
    check_metrics(start, workdir)
    if start.note and jax.process_index() == 0:
        log.warning("%s", start.note)
    return start


def _find_start(
    checkpointer: Checkpointer, program: Program, data: Pipeline, workdir: Path
) -> Start:
    experiment, base = program.experiment, program.base
    step = checkpointer.latest_step() or 0
    if not step and not (step := _finished_step(experiment, workdir)):
        return Start(0, 0.0, experiment.schedule)
    folder = CHECKPOINTS if checkpointer.latest_step() else MODEL
    place = workdir / folder / str(step)
    _check_own(experiment, data, place, workdir, is_needed=True)
    saved = runs.open_run(place, str(base.path) if base and program.origin else None)
    metadata = saved.checkpoint.metadata()
    continuation.check_adapters(program.start, metadata.get("start"), workdir)
    assert saved.experiment is not None  # as was checked
    continuation.check_initial(program.initial, experiment, saved.experiment, metadata, place)
    with saved.checkpoint.errors_in("metadata.json"):
        seconds = float(metadata["seconds"])
    schedule = find_schedule(experiment, saved.experiment, step, workdir)
    summary, note = None, ""
    if step >= experiment.steps:
        summary, note = _finished_summary(workdir, step)
    if summary is None and folder == MODEL:
        raise ValueError(
            f"{workdir / SUMMARY} is not that of {place}, whose checkpoints are gone: put back the "
            "summary or the checkpoints, or choose another --workdir"
        )
    metrics_steps = metadata.get("metrics_steps", metadata.get("metrics_lines"))
    return Start(step, seconds, schedule, metrics_steps, summary, note)


def _finished_summary(workdir: Path, step: int) -> tuple[Summary | None, str]:
    """The summary of a run that is over after `step` steps; None and the reason where its end is
    to be made once more: the model is not there, or the summary tells of something else.

    Raises:
      ValueError: the summary is damaged.
    """
    if not storage.is_file(workdir / SUMMARY):
        return None, ""
    summary = Summary.read(workdir)
    steps, _ = scan(storage.absolute(workdir) / MODEL)
    difference = ""
    if summary.steps != step:
        difference = f"it tells of {summary.steps} steps"
    elif not _is_same(summary.metrics.get("loss"), _last_loss(workdir, step)):
        difference = f"its loss is not that of step {step} in {workdir / METRICS}"
    if difference:
        return None, (
            f"{workdir / SUMMARY} is not that of this run, which has {step} steps behind it: "
            f"{difference}; it is written anew"
        )
    if step not in steps:
        place = workdir / MODEL / str(step)
        return None, f"{place} is not there: it is made from the checkpoint of step {step}"
    return summary, ""


def _last_loss(workdir: Path, step: int) -> float | None:
    """The loss of a step in the metrics; None: it has no line there."""
    path = storage.absolute(workdir) / METRICS
    rows = read_metrics(path) if storage.is_file(path) else []
    return next((row["loss"] for row in rows if row["step"] == step and "loss" in row), None)


def _is_same(a: float | None, b: float | None) -> bool:
    """Whether two numbers are equal, as far as they are there and finite: a file has null else."""
    return a == b or any(x is None or not math.isfinite(x) for x in (a, b))


def check_steps(now: Experiment, data: Pipeline, workdir: Path, step: int) -> None:
    """Refuses what lies where a run saves, from `step` on, and is not its own: links, checkpoints
    and models of other runs, other folders.

    Raises:
      LinkError: a checkpoint or model is a symbolic link.
      ValueError: it is another run's, or no checkpoint; the message names it.
      CheckpointError: its metadata cannot be read.
    """
    for name in (CHECKPOINTS, MODEL):
        folder = storage.absolute(workdir) / name
        complete_steps, incomplete_steps = scan(folder)
        for number in sorted({*complete_steps, *incomplete_steps}):
            place = folder / str(number)
            if number >= step:
                files.check_no_link(place, workdir)
            elif os.path.islink(place):
                continue  # nothing is saved there
            if number in complete_steps:
                _check_own(now, data, place, workdir, is_needed=number >= step)
            elif number >= step:
                _check_no_other_folder(place)


def _check_own(
    now: Experiment, data: Pipeline, place: Path, workdir: Path, is_needed: bool
) -> None:
    """Raises ValueError for a step of another run, or one that was renamed; one that is not needed
    may be damaged."""
    checkpoint = Checkpoint(storage.absolute(place))
    try:
        metadata = checkpoint.metadata()
        with checkpoint.errors_in("metadata.json"):
            experiment, fingerprints = metadata["experiment"], dict(metadata["data"])
            fingerprints["the tokenizer"] = metadata["tokenizer"]
            if experiment is not None:
                experiment = schema.build(Experiment, experiment, f"{place}: metadata.experiment")
    except CheckpointError:
        if is_needed:
            raise
        return
    if experiment is None:
        raise ValueError(f"{place} is no model of a run that trains there: move it away")
    try:
        check_same_run(now, experiment, place)
        check_same_data(fingerprints, data, place)
        _check_template_tokens(metadata, now, data, place)
        _check_number(checkpoint, is_needed)
    except ValueError as error:
        files.check_no_link(place, workdir)  # which says where the other run is
        raise ValueError(f"{error}; or move {place} away, where it was put there") from error


def _check_number(checkpoint: Checkpoint, is_needed: bool) -> None:
    """Raises ValueError for a step that was renamed; one that is not needed may be damaged."""
    try:
        checkpoint.check_step()
    except CheckpointError:
        if is_needed:
            raise


def _check_no_other_folder(place: Path) -> None:
    """Raises ValueError for what is neither a checkpoint nor what a kill left of one."""
    if others := other_names(place):
        raise ValueError(
            f"{place} is no checkpoint (it has {', '.join(others[:3])}), and the run "
            "would save there: move it away"
        )


def _finished_step(experiment: Experiment, workdir: Path) -> int:
    """The last step of a finished run whose checkpoints were removed; 0: there is no model.

    Raises:
      ValueError: the folder holds a model that is not the end of such a run.
    """
    steps, _ = scan(storage.absolute(workdir) / MODEL)
    if not steps:
        return 0
    if not storage.is_file(workdir / SUMMARY) or experiment.steps > steps[-1]:
        raise ValueError(
            f"{workdir} holds a model (step {steps[-1]}) and no checkpoint to go on from: choose "
            "another --workdir, and train it further with init_from, or from the start without"
        )
    return steps[-1]


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


def check_same_data(then: Mapping[str, str], data: Pipeline, workdir: Path) -> None:
    """Refuses to resume on text or a tokenizer whose content is not what it was.

    Args:
      then: the fingerprints of the sources, by name, and of "the tokenizer".

    Raises:
      ValueError: naming the sources that differ.
    """
    now = {**data.fingerprints, "the tokenizer": data.tokenizer.fingerprint()}
    changed_names = [name for name, fingerprint in now.items() if then.get(name) != fingerprint]
    if changed_names:
        raise ValueError(
            f"{workdir} was trained on other content of {', '.join(changed_names)}; put it back, "
            "or choose another --workdir"
        )


def _check_template_tokens(
    metadata: Mapping[str, Any], experiment: Experiment, data: Pipeline, place: Path
) -> None:
    """Refuses to go on where a chat template would write other special tokens than before: runs of
    old, which do not record them, wrote the end token for each that their tokenizer has not."""
    tokenizer, now = data.tokenizer, data.tokenizer.template_tokens
    then = metadata.get("template_tokens", tokenizer.role_tokens | now)
    for name in experiment.data.objective.template_names(tokenizer):
        if then.get(name) != now.get(name):
            raise ValueError(
                f"{place} was trained with {then.get(name)!r} as the chat template's {name}, which "
                f"is {now.get(name, 'none')!r} now: choose another --workdir"
            )


def check_metrics(start: Start, workdir: Path) -> None:
    """Says which lines of the metrics that a checkpoint stands on are gone; it goes on without.

    Raises:
      ValueError: a line is broken.
    """
    if jax.process_index() != 0 or not start.metrics_steps:
        return
    path = storage.absolute(workdir) / METRICS
    rows = read_metrics(path) if storage.is_file(path) else []
    rows = [row for row in rows if row["step"] <= start.step]
    if isinstance(start.metrics_steps, int):
        is_short = len(rows) < start.metrics_steps
        difference = f"{len(rows)} of {start.metrics_steps} lines are left" if is_short else ""
    else:
        difference = describe_difference(start.metrics_steps, rows)
    if difference:
        log.warning(
            "%s has not the lines that it had when step %d was saved (%s): they were lost, deleted "
            "or changed. The run goes on with those that are there; to have the others, stop it, "
            "put the file back and start again",
            path,
            start.step,
            difference,
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
