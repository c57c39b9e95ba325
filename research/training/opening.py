"""A run that is about to train: all that is known of it before its executable and its arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax

from research.checkpoints.checkpointer import Checkpointer
from research.data.heldout import HeldOut
from research.data.pipeline import Pipeline
from research.experiment import Experiment
from research.runtime import storage
from research.text.tokenizer import Tokenizer
from research.training import resume, saving
from research.training.best_metric import check_ranked, measured_on
from research.training.describe import ReadingPlan, describe_run
from research.training.evaluators import Evaluator, check_metrics
from research.training.observers import show
from research.training.program import Program
from research.training.resume import Start
from research.training.session import Session


@dataclasses.dataclass(frozen=True)
class OpenedRun:
    """A run's program, its data, and where it stands; made by `open_training`.

    Attributes:
      start: where it begins; with the summary of a run that is finished.
      heldout, evaluator: what it is measured on, and what asks it tasks; maybe nothing.
      measured_on: identifies what its best checkpoint is chosen by; None: it keeps none.
    """

    folder: Path
    program: Program
    tokenizer: Tokenizer
    data: Pipeline
    heldout: list[HeldOut]
    evaluator: Evaluator | None
    reading: ReadingPlan
    checkpointer: Checkpointer
    start: Start
    measured_on: str | None

    @property
    def tokens_per_step(self) -> float:
        return self.reading.tokens / self.program.experiment.steps


def open_training(
    experiment: Experiment,
    folder: Path,
    session: Session,
    claim: bool = True,
    devices: Sequence[jax.Device] | None = None,
) -> OpenedRun:
    """Opens what a run reads, checks it, and finds out where it stands.

    Args:
      claim: lock the folder, unless the run is finished.
      devices: all that it works on; None: all of this machine.

    Raises:
      ValueError: the experiment does not fit its data, model, mesh or folder.
    """
    # --- program: everything abstract, so that what does not fit is an error before compute ---
    base, tokenizer = session.open_base_and_tokenizer(experiment)
    experiment = dataclasses.replace(experiment, method=experiment.method.bind(tokenizer))
    program = session.make_program(experiment, base, devices)

    # --- data ---
    data, heldout = session.open_data(program, tokenizer)
    reading = ReadingPlan.of(data, experiment.steps)
    session.open_start_data(program, data)  # what is wrong there is an error now
    evaluator = session.open_evaluator(program, data)
    check_metrics(experiment, heldout, evaluator)

    # --- where the run stands: resume > init from > scratch ---
    checkpointer = saving.make_checkpointer(folder, experiment.checkpoint)
    start = resume.find_start(checkpointer, program, data, folder, claim)
    key = measured_on(experiment, heldout, evaluator)
    if start.step and not start.summary:
        check_ranked(checkpointer, experiment, key, folder)
    if start.summary:
        step, steps = start.step, experiment.steps
        count = f"{step} of {steps} steps" if step == steps else f"{step} steps, {steps} asked for"
        show(f"{folder} is finished: {count}")
    else:
        program = program.with_schedule(start.schedule)
        resume.check_same_everywhere(experiment, data, base, folder, start.step)
        if jax.process_index() == 0:
            storage.check_writable(folder)
            show(describe_run(program, reading, start.step))
            if evaluator is not None:
                every = experiment.evaluate_every or experiment.steps
                show(f"evaluate   every {every:,} steps: {evaluator.describe()}")
    return OpenedRun(
        folder, program, tokenizer, data, heldout, evaluator, reading, checkpointer, start, key
    )
