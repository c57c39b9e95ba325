"""The summary of a run: what it did and what that cost, `summary.json` in its folder."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from research.data.pipeline import Pipeline
from research.runtime import files
from research.runtime.memory import StepMemory, peak_memory_bytes
from research.training.describe import ReadingPlan
from research.training.monitor import StepMonitor
from research.training.program import Program
from research.training.timing import Timing, describe_seconds

SUMMARY = "summary.json"


@dataclasses.dataclass(frozen=True)
class Summary:
    """Counts and costs of a whole run, with its last metrics."""

    # of the last step (`loss`, ...) and of the last evaluation (`heldout_loss`, `TASK/METRIC`, ...)
    metrics: Mapping[str, float]
    # steps done, and those of them of this process that had no finite loss and gradient
    steps: int
    skipped: int
    # whether all steps are done
    finished: bool
    # with those of processes before a restart
    seconds: float
    # tokens and examples read
    tokens: float
    examples: float
    # of all sources: documents, and those of which something was cut
    documents: int
    truncated: int
    # model FLOPs
    flops: float
    trainable_parameters: int
    parameters: int
    # bytes of a device that the compiled step needs
    program_bytes: int
    # bytes that this process used at most
    peak_memory_bytes: int
    # of this process: the median, and the quickest, which a shared machine blurs least
    step_seconds: float | None
    quickest_step_seconds: float | None
    # of this process: seconds by what the host did
    timing: Mapping[str, float]
    # the best checkpoint: its `step`, and the `metric` and `value` that it is chosen by; None where
    # none is kept
    best: Mapping[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """The content of summary.json: metrics and all other fields side by side.

        The whole run's `tokens` and `skipped` take the place of those of its last step.
        """
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {**fields.pop("metrics"), **fields}

    def write(self, workdir: Path) -> None:
        files.write_json(workdir / SUMMARY, self.to_dict())

    def describe(self) -> str:
        """Lines for the run's user: where the time went, and how to go on with a stopped run."""
        line = f"time       {describe_seconds(self.timing)}"
        if self.best:
            best = "best       step {step}, {metric} {value:.4g}: open it as WORKDIR/best"
            line = f"{best.format(**self.best)}\n{line}"
        if self.finished:
            return line
        stopped = f"stopped by a signal at step {self.steps}, saved"
        return f"{line}\n{stopped}; run the same command to go on"

    @classmethod
    def read(cls, workdir: Path) -> Summary:
        """The summary in a run's folder; what an older version did not write is None.

        Raises:
          ValueError: it is damaged.
        """
        content = read_summary(workdir)
        if type(content.get("steps")) is not int:
            raise _damaged(workdir, "it has no number of steps")
        names = [field.name for field in dataclasses.fields(cls) if field.name != "metrics"]
        fields = {name: content.pop(name, None) for name in names}
        return cls(metrics=content, **fields)


def read_summary(workdir: Path) -> dict[str, Any]:
    """The content of summary.json.

    Raises:
      ValueError: it is damaged.
    """
    try:
        content = json.loads((workdir / SUMMARY).read_text())
    except ValueError as error:
        raise _damaged(workdir, error) from error
    if not isinstance(content, dict):
        raise _damaged(workdir, f"{content!r:.40} is no JSON object")
    return content


def _damaged(workdir: Path, cause: Exception | str) -> ValueError:
    return ValueError(
        f"{workdir / SUMMARY} is damaged ({cause}): delete it, and graft train with the run's "
        "config writes it again"
    )


def summarize(
    program: Program,
    data: Pipeline,
    reading: ReadingPlan,
    monitor: StepMonitor,
    memory: StepMemory,
    timing: Timing,
    step: int,
) -> Summary:
    """The summary of a run that did `step` steps; `reading` is the plan for all of them."""
    steps, step_seconds = program.experiment.steps, monitor.step_seconds
    return Summary(
        metrics=monitor.last | dict(monitor.evaluation.metrics),
        steps=step,
        skipped=monitor.skipped,
        finished=step >= steps,
        seconds=timing.total_seconds,
        tokens=data.tokens(step),
        examples=reading.examples * (step / steps),
        documents=reading.documents,
        truncated=reading.truncated,
        flops=program.flops_per_token * data.tokens(step),
        trainable_parameters=program.trainable_parameters,
        parameters=program.parameters,
        program_bytes=memory.peak,
        peak_memory_bytes=peak_memory_bytes(),
        step_seconds=statistics.median(step_seconds) if step_seconds else None,
        quickest_step_seconds=min(step_seconds, default=None),
        timing=timing.seconds,
    )
