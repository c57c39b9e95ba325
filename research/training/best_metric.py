"""What the metric is measured on that chooses a run's best checkpoint: it stays the same.

An experiment's evaluation may change where a run goes on. Values of other questions, or of another
part of the held-out text, cannot be ranked with those before.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from research.checkpoints.checkpoint import CheckpointError
from research.checkpoints.checkpointer import Checkpointer
from research.config import schema
from research.data.heldout import HeldOut
from research.experiment import Experiment
from research.training.evaluators import Evaluator

MEASURED_ON = "best_metric"  # in a checkpoint's metadata


def measured_on(
    experiment: Experiment, heldout: Sequence[HeldOut], evaluator: Evaluator | None
) -> str | None:
    """Identifies what `checkpoint.best_metric` is measured on; None: nothing is chosen by it."""
    if not experiment.checkpoint.keep_best:
        return None
    name = experiment.checkpoint.best_metric
    content: Any
    if name.startswith("heldout_"):
        content = [[part.name, _checksum(part)] for part in heldout]
    else:
        assert evaluator is not None  # `evaluators.check_metrics` has seen to it
        content = evaluator.keys[name.partition("/")[0]]
    return hashlib.sha256(json.dumps([name, content]).encode()).hexdigest()[:16]


def check_ranked(
    checkpointer: Checkpointer, experiment: Experiment, key: str | None, workdir: Path
) -> None:
    """Refuses to go on where the best checkpoint would be chosen among values of different things.

    Args:
      key: as of `measured_on`.

    Raises:
      ValueError: naming the step that was measured otherwise.
    """
    name = experiment.checkpoint.best_metric
    for step in checkpointer.all_steps() if key is not None else ():
        saved = checkpointer.at(step)
        try:
            if name not in saved.metrics():
                continue
            then = saved.metadata()
        except CheckpointError:  # it is not ranked, which is said where it is ranked
            continue
        is_same = then.get(MEASURED_ON) == key
        if MEASURED_ON not in then:  # of old
            is_same = _settings(then["experiment"], name) == _settings(
                schema.to_dict(experiment), name
            )
        if not is_same:
            raise ValueError(
                f"{workdir}: {name} of step {step} was measured on something else than now, so the "
                "best checkpoint cannot be told: put back what is evaluated, set "
                "checkpoint.keep_best=False, or choose another --workdir"
            )


def _settings(experiment: Any, name: str) -> Any:
    fields = (
        ("evaluate_split", "evaluate_tokens") if name.startswith("heldout_") else ("evaluation",)
    )
    return json.dumps([(experiment or {}).get(field) for field in fields], sort_keys=True)


def _checksum(part: HeldOut) -> int:
    """Of what is asked of every token."""
    checksum = 0
    for batch in part.batches():
        for array in (batch.targets, batch.weights):
            checksum = zlib.crc32(np.ascontiguousarray(array).tobytes(), checksum)
    return checksum
