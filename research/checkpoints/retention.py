"""Which checkpoints of a folder are kept: the last, and the best by a metric."""

import logging
import math
import os
from typing import Literal

from etils import epath

from research.checkpoints.checkpoint import Checkpoint, CheckpointError
from research.checkpoints.removal import remove_step
from research.checkpoints.step_folders import other_names, scan
from research.runtime.files import check_no_link

log = logging.getLogger(__name__)


def better_end(metric: str) -> Literal["min", "max"]:
    """Whether the smallest or the largest value of a run's metric is the best: losses and bits
    are the better the smaller, all that tasks measure is the better the larger."""
    return "min" if metric.startswith(("heldout_", "bits_per_byte/")) else "max"


class Retention:
    """What `Checkpointer` keeps; its arguments are described there."""

    def __init__(
        self,
        directory: epath.Path,
        keep_last: int,
        keep_best: int,
        best_metric: str | None,
        best_mode: Literal["min", "max"],
    ):
        if keep_last < 1 or keep_best < 0 or (keep_best and best_metric is None):
            raise ValueError(
                "need keep_last >= 1, keep_best >= 0 and, if keep_best > 0, a best_metric; got "
                f"keep_last={keep_last}, keep_best={keep_best}, best_metric={best_metric!r}"
            )
        if best_mode not in ("min", "max"):
            raise ValueError(f"best_mode must be 'min' or 'max', got {best_mode!r}")
        self._directory = directory
        self._keep_last, self._keep_best = keep_last, keep_best
        self._best_metric, self._best_mode = best_metric, best_mode
        self._reported: set[int] = set()

    def prune(self) -> None:
        """Removes the steps that are neither among the last nor among the best."""
        check_no_link(self._directory, self._directory.parent)
        steps, incomplete = scan(self._directory)
        best_first, unranked = self.rank(steps)
        keep = {*steps[-self._keep_last :], *best_first[: self._keep_best], *unranked}
        for step in sorted({*steps, *incomplete} - keep):
            path = self._directory / str(step)
            if step > steps[-1] or not (path / "state").exists():
                continue  # not older than the newest good step, or not a checkpoint at all
            if step in incomplete and other_names(path):
                continue  # as of `remove_leftovers`
            remove_step(path)

    def rank(self, steps: list[int]) -> tuple[list[int], list[int]]:
        """The steps with a finite `best_metric`, best first (of equals the earlier), and those
        whose metrics cannot be read, which is said once. A link is another run's, perhaps, and not
        ranked."""
        if self._best_metric is None:
            return [], []
        sign = 1 if self._best_mode == "min" else -1
        scores, unranked = [], []
        for step in steps:
            path = self._directory / str(step)
            if os.path.islink(path):
                continue
            try:
                value = self._value(Checkpoint(path))
            except CheckpointError as error:  # perhaps only the network: no reason to remove it
                unranked.append(step)
                self._report(step, error)
                continue
            if value is not None:
                scores.append((sign * value, step))
        return [step for _, step in sorted(scores)], unranked

    def _value(self, checkpoint: Checkpoint) -> float | None:
        """The metric of a step; None: it was saved without it, or it is not finite."""
        value = checkpoint.metrics().get(self._best_metric or "")
        with checkpoint.errors_in("metrics.json"):
            if value is None or not math.isfinite(float(value)):
                return None
            return float(value)

    def _report(self, step: int, error: CheckpointError) -> None:
        if step in self._reported:
            return
        self._reported.add(step)
        log.warning(
            "%s: %s. Without its metrics it is not ranked among the best, and it is never removed: "
            "remove it by hand if nobody needs it",
            self._directory / str(step),
            error.detail,
        )
