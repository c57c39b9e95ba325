"""The best checkpoint of a run, by the metric that its config names: `RUN/best`."""

from __future__ import annotations

import os

from research.checkpoints.checkpoint import Checkpoint, open_checkpoint
from research.checkpoints.retention import Retention, better_end
from research.checkpoints.step_folders import scan
from research.config import schema
from research.experiment import CheckpointConfig
from research.runtime.storage import absolute, is_folder

BEST = "best"


def open_best(path: str | os.PathLike[str]) -> Checkpoint | None:
    """The checkpoint that `RUN/best` stands for; None for any other path.

    Raises:
      FileNotFoundError: the run keeps no best checkpoint, or has measured none yet.
    """
    name = absolute(path)
    folder = name.parent / "checkpoints"
    if name.name != BEST or is_folder(name) or not is_folder(folder):
        return None
    newest = open_checkpoint(folder)
    with newest.errors_in("metadata.json"):
        experiment = newest.metadata()["experiment"] or {}
        content = experiment.get("checkpoint", {})
    config = schema.build(CheckpointConfig, content, f"{newest.path}: metadata.checkpoint")
    if not config.keep_best:
        raise FileNotFoundError(f"{name.parent} keeps no best checkpoint (checkpoint.keep_best)")
    metric = config.best_metric
    retention = Retention(folder, config.keep_last, 1, metric, better_end(metric))
    steps, _ = retention.rank(scan(folder)[0])
    if not steps:
        raise FileNotFoundError(f"no checkpoint in {folder} has a {metric}: none was measured yet")
    return Checkpoint(folder / str(steps[0]))
