"""What a run saves: its checkpoints on the way, and the model at its end."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from research.checkpoints import runs, stacking
from research.checkpoints.checkpointer import Checkpointer, library_versions
from research.checkpoints.retention import better_end
from research.config import schema
from research.data.pipeline import Pipeline
from research.experiment import CheckpointConfig
from research.training.best_metric import MEASURED_ON
from research.training.heldout_loss import EvaluationMetrics
from research.training.metrics import MetricsWriter
from research.training.program import Program
from research.training.timing import Timing
from research.training.workdir import CHECKPOINTS, MODEL, check_claim, own_files, restore_files
from research.tree import Arrays

NO_LIMIT = 1_000_000  # finished models are never removed: adapters may stand on them


def make_checkpointer(workdir: Path, config: CheckpointConfig) -> Checkpointer:
    """The checkpointer of a run's own steps."""
    return Checkpointer(
        workdir / CHECKPOINTS,
        keep_last=config.keep_last,
        keep_best=int(config.keep_best),
        best_metric=config.best_metric if config.keep_best else None,
        best_mode=better_end(config.best_metric),
        check=functools.partial(check_claim, workdir),
    )


class RunSaver:
    """Saves the state of a run: its checkpoints on the way, and the model at its end."""

    def __init__(
        self,
        program: Program,
        data: Pipeline,
        workdir: Path,
        checkpointer: Checkpointer,
        writer: MetricsWriter,
        timing: Timing,
        measured_on: str | None = None,
    ):
        """`measured_on`: what the best checkpoint is chosen by."""
        self._workdir = workdir
        self._checkpointer, self._writer, self._timing = checkpointer, writer, timing
        self._metadata = run_metadata(program, data)
        if measured_on is not None:
            self._metadata[MEASURED_ON] = measured_on
        initial = program.initial
        sidecar_files = (initial.sidecar_files if initial else {}) | data.sidecar_files
        self._swap_average = program.swap_average
        self._own_files = own_files(program.experiment, data.tokenizer)
        tokenizer_file = {runs.TOKENIZER: data.tokenizer.to_json().encode()}
        self._files: dict[str, bytes | Path] = {**sidecar_files, **tokenizer_file}

    def save(self, step: int, own: Arrays, evaluation: EvaluationMetrics) -> None:
        """Starts saving a checkpoint: everything of the state that is this run's own."""
        with self._timing("checkpoint"):
            self._write(self._checkpointer, step, self._swap_average(own), evaluation)

    def export(self, step: int, own: Arrays, evaluation: EvaluationMetrics) -> None:
        """Saves what others use, the weights without the optimizer, and waits for it."""
        arrays = self._swap_average(own)
        weights = {name: array for name, array in arrays.items() if name.startswith("model/")}
        with (
            self._timing("export"),
            Checkpointer(
                self._workdir / MODEL,
                keep_last=NO_LIMIT,
                check=functools.partial(check_claim, self._workdir),
            ) as checkpointer,
        ):
            # one that a kill left is of the same bits, unless the mesh or the schedule changed
            self._write(checkpointer, step, weights, evaluation, replace=True)

    def _write(
        self,
        checkpointer: Checkpointer,
        step: int,
        arrays: Arrays,
        evaluation: EvaluationMetrics,
        replace: bool = False,
    ) -> None:
        check_claim(self._workdir)
        restore_files(self._workdir, self._own_files)
        self._writer.mirror()  # lines up to a checkpoint are not written again
        checkpointer.save(
            step,
            stacking.unstack_for_saving(arrays),
            self._metadata
            | {
                "step": step,
                "seconds": self._timing.total_seconds,
                "metrics_steps": self._writer.steps.progressions,
            },
            # an older model's metrics say nothing of this one
            metrics=evaluation.metrics if evaluation.step == step else None,
            files=self._files,
            replace=replace,
        )


def run_metadata(program: Program, data: Pipeline) -> dict[str, Any]:
    """The JSON record with which a checkpoint is understood: see `runs.open_run`."""
    base, start, tokenizer = program.base, program.start, data.tokenizer
    return {
        "experiment": schema.to_dict(program.experiment),
        "model": schema.to_dict(program.model_config),
        "base": program.origin,
        "initial": program.initial.fingerprint if program.initial else None,
        "start": start and {"path": str(start.path), "fingerprint": start.fingerprint},
        "data": data.fingerprints,
        "tokenizer": tokenizer.fingerprint(),
        "roles": tokenizer.roles,
        "template_tokens": tokenizer.template_tokens,
        "imported": base.origin if base else None,
        "versions": library_versions(),
    }
