"""Metrics of the steps in flight: fetched, logged and shown when their step is over."""

from __future__ import annotations

import collections
import contextlib
import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from research.training.heldout_loss import EvaluationMetrics
from research.training.metric_steps import kind_of
from research.training.metrics import METRICS, MetricsWriter, read_metrics
from research.training.program import Program
from research.training.progress import Progress, StepSink
from research.training.timing import Timing


def is_due(step: int, every: int, steps: int) -> bool:
    """Whether something that happens every so many steps, and at the last one, happens now."""
    return step == steps or bool(every and step % every == 0)


class StepMonitor:
    """Follows the steps of a run one behind, so that the devices never wait for the host.

    It opens the run's metrics and its progress bar; as a context manager it closes them.

    Attributes:
      last: metrics of the last step that is over.
      evaluation: the last metrics of held-out data and of tasks.
      skipped: how many steps of this process had no finite loss and gradient.
      writer: where the metrics go.
    """

    def __init__(
        self,
        program: Program,
        tokens_per_step: float,
        workdir: Path,
        first_step: int,
        timing: Timing,
        peak_flops: float | None,
        on_step: StepSink | None = None,
        check: Callable[[], None] | None = None,
    ):
        """Starts with no step in flight.

        Args:
          program: the run's; its experiment says when to log, and when to give up.
          tokens_per_step: tokens of a batch, for the rate that the progress bar shows.
          workdir: the run's folder.
          first_step: steps that earlier processes did.
          timing: where the seconds of waiting and logging are counted.
          peak_flops: FLOP/s of all devices; None if unknown.
          on_step: told of every step that is over.
          check: as of `MetricsWriter`.
        """
        experiment = program.experiment
        self.skipped = 0
        self.last: dict[str, float] = {}
        self.evaluation = EvaluationMetrics()
        # lines are numbered by steps done
        self.writer = MetricsWriter(workdir, first_step + 1, check=check)
        self._progress = Progress(
            experiment.steps,
            first_step,
            flops_per_token=program.flops_per_token,
            peak_flops=peak_flops,
            sink=on_step,
        )
        if first_step >= experiment.steps:  # only the end is missing: the summary has its numbers
            self.last, self.evaluation = last_metrics(workdir, first_step)
        self._timing, self._tokens_per_step = timing, int(tokens_per_step)
        self._steps, self._log_every = experiment.steps, experiment.log_every
        self._max_skipped = min(experiment.max_skipped, experiment.steps)
        self._in_flight: collections.deque[tuple[int, Mapping[str, Any]]] = collections.deque()
        self._skipped_in_a_row = 0
        self._shown_metrics = experiment.loss.shown_metrics
        self._end_times: list[float] = []
        self._paused = 0.0
        # what the progress bar shows of the last evaluation
        self._shown_metric = experiment.checkpoint.best_metric

    def push(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Takes the metrics of a step that was dispatched, and waits for the step before it.

        Raises:
          FloatingPointError: too many steps in a row without a finite loss and gradient.
        """
        self._in_flight.append((step, metrics))
        self._fetch(behind=1)

    def drain(self) -> None:
        """Waits for all steps that were dispatched.

        Raises:
          FloatingPointError: too many steps in a row without a finite loss and gradient.
        """
        self._fetch(behind=0)

    @contextlib.contextmanager
    def pause(self, part: str) -> Iterator[None]:
        """Waits for all steps; the time of what runs inside counts as `part`, not as a step's."""
        self.drain()
        start = time.perf_counter()
        with self._progress.pause(), self._timing(part):
            yield
        self._paused += time.perf_counter() - start

    def push_evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Takes, writes and shows what was measured of the model at a step."""
        self.evaluation = EvaluationMetrics(step, metrics)
        self.writer.write(step, metrics)
        name = self._shown_metric if self._shown_metric in metrics else next(iter(metrics))
        self._progress.note = f"{name} {metrics[name]:.4g}"

    @property
    def step_seconds(self) -> list[float]:
        """Seconds between the ends of consecutive steps, without those of pauses."""
        return [after - before for before, after in itertools.pairwise(self._end_times)]

    def _fetch(self, behind: int) -> None:
        """Fetches the metrics of steps that are over; `behind` steps may still be running."""
        while len(self._in_flight) > behind:
            step, metrics = self._in_flight.popleft()
            with self._timing("step"):
                self.last = {name: float(value) for name, value in metrics.items()}
            self._end_times.append(time.perf_counter() - self._paused)
            self._skipped_in_a_row = self._skipped_in_a_row + 1 if self.last["skipped"] else 0
            self.skipped += int(self.last["skipped"])
            self._progress.update(
                step, self.last["loss"], self._tokens_per_step, self._describe_metrics()
            )
            if is_due(step, self._log_every, self._steps) or self._skipped_in_a_row:
                with self._timing("logging"):
                    self.writer.write(step, self.last)
            if self._skipped_in_a_row >= self._max_skipped:
                raise FloatingPointError(
                    f"{self._skipped_in_a_row} steps in a row up to step {step} had no finite loss "
                    "and gradient, or no trained token: lower schedule.learning_rate, or look at "
                    "the data"
                )

    def _describe_metrics(self) -> str:
        """What the progress bar says of a step beside its loss."""
        return ", ".join(f"{n.replace('_', ' ')} {self.last[n]:.3g}" for n in self._shown_metrics)

    def __enter__(self) -> StepMonitor:
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.close()
        self.writer.close()


def last_metrics(workdir: Path, step: int) -> tuple[dict[str, float], EvaluationMetrics]:
    """Metrics and evaluation of a step that an earlier process took, from its metrics.jsonl.

    They are those of the summary, where only the end of a run is missing.
    """
    last: dict[str, float] = {}
    evaluation = EvaluationMetrics()
    for row in read_metrics(workdir / METRICS):
        is_last = row.pop("step") == step
        if kind_of(row) == "training":
            last = row
        elif is_last:
            evaluation = EvaluationMetrics(step, row)
    return last, evaluation
