"""What a run does about its steps: metrics, measurements, checkpoints; at its end, its model."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Protocol

from research import sharding
from research.runtime.memory import StepMemory
from research.training.heldout_loss import evaluate_heldout
from research.training.monitor import StepMonitor, is_due
from research.training.opening import OpenedRun
from research.training.progress import StepSink
from research.training.saving import RunSaver
from research.training.summary import Summary, summarize
from research.training.timing import Timing
from research.training.workdir import check_claim, open_workdir, write_summary
from research.tree import Arrays


class Follower(Protocol):
    """What the loop tells of its steps: one run, or a group of runs trained as one program."""

    @property
    def has_ended(self) -> bool:
        """Whether there is nothing left to train, whatever steps are left."""
        ...

    def push(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Takes the metrics of a step that was dispatched, and waits for the step before it."""
        ...

    def after(self, step: int, own: Arrays, is_last: bool) -> None:
        """Evaluates and saves where that is due; after the last step before a signal, saves."""
        ...


class RunFollower(Follower):
    """Follows the steps of one run; as a context manager it closes what it opened.

    Raises, from every method:
      FloatingPointError: too many steps in a row without a finite loss and gradient.
      LockLostError: the folder, or its lock, was taken away from the run.
    """

    has_ended = False

    def __init__(
        self,
        run: OpenedRun,
        frozen: Arrays,
        timing: Timing,
        on_step: StepSink | None = None,
        peak_flops: float | None = None,
    ):
        """Opens the run's folder.

        Args:
          frozen: the base's arrays, which no step changes.
          on_step: is told of every step; what it raises ends the run.
          peak_flops: FLOP/s of all devices, for the progress bar; None if unknown.
        """
        program, folder = run.program, run.folder
        self._run, self._frozen, self._timing = run, frozen, timing
        open_workdir(folder, program.experiment, run.tokenizer)
        with contextlib.ExitStack() as stack:
            self._monitor = stack.enter_context(
                StepMonitor(
                    program,
                    run.tokens_per_step,
                    folder,
                    run.start.step,
                    timing,
                    peak_flops,
                    on_step,
                    functools.partial(check_claim, folder),
                )
            )
            checkpointer = stack.enter_context(run.checkpointer)
            self._saver = RunSaver(
                program,
                run.data,
                folder,
                checkpointer,
                self._monitor.writer,
                timing,
                run.measured_on,
            )
            self._stack = stack.pop_all()

    def acts_after(self, step: int) -> bool:
        """Whether a step is one after which the run is measured or saved."""
        return self._is_measured(step) or self._is_saved(step)

    def push(self, step: int, metrics: Mapping[str, Any]) -> None:
        self._monitor.push(step, metrics)

    def after(self, step: int, own: Arrays, is_last: bool) -> None:
        if self._is_measured(step):
            self._measure(step, own)
        if is_last or self._is_saved(step):
            self._monitor.drain()
            self._saver.save(step, own, self._monitor.evaluation)

    def end(self, step: int, own: Arrays, memory: StepMemory) -> Summary:
        """Waits for what is under way, exports the model of a run that is done, and sums it up."""
        run, monitor = self._run, self._monitor
        monitor.drain()
        if step >= run.program.experiment.steps:
            self._saver.export(step, own, monitor.evaluation)
        self._stack.close()  # waits for the last checkpoint: only then is the run finished
        summary = summarize(run.program, run.data, run.reading, monitor, memory, self._timing, step)
        if (best := run.checkpointer.best_step()) is not None:
            metric = run.program.experiment.checkpoint.best_metric
            value = run.checkpointer.at(best).metrics()[metric]
            summary = dataclasses.replace(summary, best=dict(step=best, metric=metric, value=value))
        write_summary(run.folder, summary)
        return summary

    def _measure(self, step: int, own: Arrays) -> None:
        """Measures the model as it is, with the weights where the step left them."""
        run, program = self._run, self._run.program
        with (
            self._monitor.pause("evaluation"),
            sharding.mesh_context(program.mesh, program.experiment.sharding_rules),
        ):
            averaged, metrics = program.swap_average(own), dict[str, float]()
            model = program.model(averaged, self._frozen)
            if run.heldout:
                rows, loss = program.batch_sharding, program.experiment.loss
                metrics |= evaluate_heldout(model, rows, run.heldout, loss)
            if run.evaluator is not None:
                metrics |= run.evaluator(model)
            config = program.experiment.checkpoint
            if config.keep_best:  # one that nothing could be said of is not ranked
                metrics.setdefault(config.best_metric, math.nan)
            self._monitor.push_evaluation(step, metrics)

    def _is_measured(self, step: int) -> bool:
        experiment, run = self._run.program.experiment, self._run
        is_asked = bool(run.heldout) or run.evaluator is not None
        return is_asked and is_due(step, experiment.evaluate_every, experiment.steps)

    def _is_saved(self, step: int) -> bool:
        config, steps = self._run.program.experiment.checkpoint, self._run.program.experiment.steps
        return is_due(step, config.every, steps) or (config.keep_best and self._is_measured(step))

    def __enter__(self) -> RunFollower:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)
