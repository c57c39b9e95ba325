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
from research.runtime import distributed
from research.training.summary import SUMMARY, Summary
from research.training.workdir import claim_workdir

# fields of an experiment that may change between two starts of one run: its number of steps, the
# mesh, and what is only measured or kept; opening the run compares the base's fingerprint
CHANGEABLE = frozenset(
    {
        "steps",
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


def find_start(
    checkpointer: Checkpointer,
    experiment: Experiment,
    data: Pipeline,
    workdir: Path,
    claim: bool,
) -> tuple[int, float, Summary | None]:
    """Where the run begins: the steps and seconds that it has behind it, zeros if it is new.

    Args:
      claim: lock the folder, unless the run is finished and so left as it is. The run is then
        looked for again: another process may have gone on with it meanwhile.

    Returns:
      Also its summary, if it is finished.

    Raises:
      ValueError: another process is training there, or the folder holds another run, or a run on
        other data.
    """
    start = _find_start(checkpointer, experiment, data, workdir)
    if claim and start[-1] is None:
        claim_workdir(workdir)
        start = _find_start(checkpointer, experiment, data, workdir)
    return start


def _find_start(
    checkpointer: Checkpointer, experiment: Experiment, data: Pipeline, workdir: Path
) -> tuple[int, float, Summary | None]:
    step = checkpointer.latest_step() or 0
    if not step:
        return 0, 0.0, None
    saved = runs.open_run(workdir, experiment.init_from)
    assert saved.experiment is not None  # imported models lie in no run's checkpoints
    metadata = saved.checkpoint.metadata()
    check_same_run(experiment, saved.experiment, workdir)
    check_same_data(metadata, data, workdir)
    is_finished = step >= experiment.steps and (workdir / SUMMARY).exists()
    return step, metadata["seconds"], Summary.read(workdir) if is_finished else None


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
