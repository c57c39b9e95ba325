"""Runs the trials of a study, one after the other in this process, each once.

Several processes may run one study on one folder, on one machine or on several with a common disk:
a trial belongs to the process that holds its lock. A trial that was interrupted goes on from its
last checkpoint, and the ledger gets a row when a trial is over.
"""

from __future__ import annotations

import contextlib
import datetime
import math
import shutil
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

from research.checkpoints import runs
from research.checkpoints.checkpointer import library_versions
from research.evaluation.report import Report, evaluate_run
from research.runtime import distributed
from research.runtime.locks import lock_file
from research.runtime.memory import release_memory
from research.studies.code import code_hash
from research.studies.ledger import DIVERGED, FAILED, FINISHED, Ledger, Row
from research.studies.results import lookup_in
from research.studies.schedule import Progress, plan
from research.studies.trials import BEFORE, Resolver, Trial, without_defaults
from research.training.loop import train
from research.training.summary import Summary

LOG = "log.txt"
_WAIT_SECONDS = 5.0  # before it looks again for what other processes have finished
# of a summary: what is no number of the trial as a whole
_NO_COLUMN = ("timing", "finished")


def run(
    resolver: Resolver,
    ledger: Ledger,
    folder: Path,
    *,
    retry: bool = False,
    keep_models: bool = False,
    report: Callable[[str], None] = tqdm.write,
) -> Progress:
    """Runs what is missing until the study is finished, or only failures are left.

    Args:
      folder: `trials/ADDRESS/` of it holds a trial's run and its log.
      retry: whether trials that failed run again.
      keep_models: whether the trained models stay on the disk.
      report: takes a line for each trial that is over.

    Raises:
      SystemExit: 75 after a signal; the same command goes on.
    """
    if retry:
        for address, row in ledger.read().items():
            if row["status"] == FAILED:
                ledger.remove(address)
    with tqdm(unit="trial", disable=None, dynamic_ncols=True) as bar:
        while True:
            rows = ledger.read()
            progress = plan(resolver, lookup_in(resolver, rows))
            bar.total = len(progress.trials)
            bar.n = len(progress.trials) - len(progress.missing)
            bar.refresh()
            if not progress.missing:
                return progress
            stage = progress.stage.name if progress.stage else ""
            bar.set_description(f"stage {stage}")
            if not _run_one(progress, resolver, ledger, folder, keep_models, report):
                time.sleep(_WAIT_SECONDS)  # all of them are other processes'


def _run_one(
    progress: Progress,
    resolver: Resolver,
    ledger: Ledger,
    folder: Path,
    keep_models: bool,
    report: Callable[[str], None],
) -> bool:
    """Runs the first missing trial that no other process runs; False: there is none."""
    for trial in progress.missing:
        trial_folder = folder / "trials" / trial.address
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(lock_file(trial_folder / ".trial.lock", busy="running"))
            except ValueError:
                continue
            if trial.address in ledger.read():  # another process was quicker
                return True
            try:
                row = run_trial(trial, resolver, trial_folder, keep_models)
            except SystemExit:
                report(f"{trial.label}: stopped and saved; run the same command to go on")
                raise
            ledger.write(row)
        report(describe(trial, row, resolver.study.metric))
        release_memory()
        return True
    return False


def run_trial(
    trial: Trial, resolver: Resolver, folder: Path, keep_models: bool = False
) -> dict[str, Any]:
    """Trains and evaluates; everything that it prints goes to `log.txt` in the folder.

    Returns the row for the ledger: a run that fails has one too, with its error.

    Raises:
      SystemExit: 75 after a signal.
    """
    workdir = folder / "run"
    row: dict[str, Any] = {
        "address": trial.address,
        "inputs": trial.inputs,
        "code": code_hash(),
        "config": without_defaults(trial.experiment),
        "base": resolver.depends(trial)["base"],
        "depends": resolver.depends(trial),
        "form": trial.cell.form,
        "stage": trial.stage,
        "seed": trial.seed,
        "device": jax.local_devices()[0].device_kind,
        "devices": jax.device_count(),
        "versions": library_versions(),
    }
    if trial.value is not None:
        row["value"] = trial.value
    with _logged(folder / LOG):
        try:
            if trial.stage == BEFORE:
                model = runs.open_run(trial.experiment.init_from or "")
            else:
                row |= _train(trial, workdir)
                model = runs.open_run(workdir)
            row["fingerprint"] = model.fingerprint
            if resolver.evaluation is not None:
                row |= _scores(evaluate_run(model, resolver.evaluation))
            row["status"] = FINISHED
            metric = resolver.study.metric
            if not math.isfinite(row.get(metric, 0.0)):  # one that is not there is an error later
                raise FloatingPointError(f"{metric} is {row[metric]}")
        except FloatingPointError as error:
            row |= {"status": DIVERGED, "error": str(error)}
        except Exception as error:  # whatever fails is kept and shown; the other trials go on
            traceback.print_exc()
            row |= {"status": FAILED, "error": f"{type(error).__name__}: {error}"}
    row["ended"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    if row["status"] != FAILED and not keep_models:
        for name in ("checkpoints", "model"):
            shutil.rmtree(workdir / name, ignore_errors=True)
    return row


def _train(trial: Trial, workdir: Path) -> dict[str, Any]:
    """Trains, or goes on; the columns of its row."""
    summary = train(trial.experiment, workdir)
    if summary is None or not summary.finished:
        raise SystemExit(distributed.EXIT_RESTART)
    # its arrays: the tokenizer and the base's files are everybody's
    files_of_model = [path for path in (workdir / "model").rglob("*") if path.is_file()]
    artifact = [path for path in files_of_model if "files" not in path.parts]
    return _columns(summary) | {"artifact_bytes": sum(path.stat().st_size for path in artifact)}


def describe(trial: Trial, row: Row, metric: str) -> str:
    """A trial that is over, in a line."""
    if row["status"] != FINISHED:
        return f"{trial.label}: {row['status']}: {row['error']}"
    value = row.get(metric)
    number = "" if value is None else f" {metric} {value:.4g}"
    seconds = f" in {row['seconds']:.0f} s" if "seconds" in row else ""
    return f"{trial.label}:{number or ' evaluated'}{seconds}"


def _columns(summary: Summary) -> dict[str, Any]:
    content = summary.to_dict()
    return {
        name: value
        for name, value in content.items()
        if name not in _NO_COLUMN and isinstance(value, int | float)
    }


def _scores(results: Report) -> dict[str, Any]:
    columns: dict[str, Any] = {}
    if bits := results.bits_per_byte:
        columns["bits_per_byte"] = sum(bits.values()) / len(bits)
        columns |= {f"bits_per_byte/{name}": value for name, value in bits.items()}
    if results.answers is not None and (quality := results.quality):
        columns |= {
            "quality": quality.value,
            "quality_low": quality.low,
            "quality_high": quality.high,
            "questions": quality.n,
            "correct": [bool(flag) for flag in results.answers.correct],
        }
        if results.answers.groups is not None:
            columns["groups"] = [int(group) for group in results.answers.groups]
    return columns


@contextlib.contextmanager
def _logged(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        path.open("a", encoding="utf-8") as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        yield
