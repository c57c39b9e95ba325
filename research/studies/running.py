"""Runs the trials of a study in this process, each once: one after the other, or several as one
mapped program (`research.studies.groups`).

Several processes may run one study on one folder, on one machine or on several with a common disk
or bucket: a trial belongs to the process that has its claim. A trial that was interrupted goes on
from its last checkpoint, and the ledger gets a row when a trial is over.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import math
import os
import platform
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import jax
from etils import epath
from tqdm import tqdm

from research.checkpoints import runs
from research.checkpoints.checkpointer import library_versions
from research.evaluation.in_training import open_tasks
from research.evaluation.report import Report, evaluate_run
from research.evaluation.tasks import CHOICE, TEXT
from research.reports.statistics import proportion_interval
from research.runtime import distributed, files, signals, storage
from research.runtime.memory import peak_memory_bytes, release_memory
from research.studies import measures, ways
from research.studies.addresses import without_defaults
from research.studies.claims import PATIENCE, Claim, ClaimLostError, Claims, Holder
from research.studies.code import code_hash
from research.studies.groups import Outcome, Together
from research.studies.ledger import DIVERGED, FAILED, FINISHED, Ledger, Row
from research.studies.live import StudyBar
from research.studies.results import lookup_in
from research.studies.schedule import Progress, plan
from research.studies.share import WHOLE, Share
from research.studies.study import TUNED
from research.studies.trials import BEFORE, Resolver, Trial
from research.training.loop import train
from research.training.session import Session
from research.training.summary import Summary
from research.training.workdir import leave_workdir

LOG = "log.txt"
_WAIT_SECONDS = 5.0  # before it looks again for what other processes have finished
# of a summary: what is no number of the trial as a whole
_NO_COLUMN = ("timing", "finished")


def run(
    resolver: Resolver,
    ledger: Ledger,
    folder: epath.Path,
    *,
    retry: bool = False,
    keep_models: bool = False,
    share: Share = WHOLE,
    trials: int | None = None,
    together: int | None = None,
    report: Callable[[str], None] = tqdm.write,
) -> Progress:
    """Runs what is missing until the study is finished, or only failures are left.

    Args:
      folder: `trials/ADDRESS/` of it holds a trial's run and its log.
      retry: whether trials that failed run again.
      keep_models: whether the trained models stay on the disk.
      share: which trials come first.
      trials: ends after so many.
      together: the most trials that train as one program; None: `groups.default_size()`.
      report: takes a line for each trial that is over.

    Raises:
      SystemExit: 75 after a signal; the same command goes on.
    """
    if retry:
        ledger.remove_failed()
    session, count = Session(open_tasks), 0
    claims, groups = Claims(folder), Together(session, together)
    runner = _Runner(resolver, ledger, folder, claims, session, groups, keep_models, report)
    stop, silent = threading.Event(), set[str]()
    with signals.listen(stop.set), StudyBar(resolver, ledger, claims) as bar:
        claims.on_beat = bar.beat
        while True:
            rows = ledger.read()
            progress = plan(resolver, lookup_in(resolver, rows))
            bar.update(rows, progress)
            if not progress.missing or count == trials:
                return progress
            left = None if trials is None else trials - count
            if new := runner.run_next(share.order(progress.missing), left):
                count += new
                if stop.is_set():  # it came when a trial had no step left
                    raise SystemExit(distributed.EXIT_RESTART)
            else:  # all of them are other processes'
                for holder in claims.silent_holders():
                    if holder.place not in silent:
                        report(_describe_silent(holder))
                    silent.add(holder.place)
                time.sleep(_WAIT_SECONDS)


@dataclasses.dataclass(frozen=True)
class _Runner:
    """What it takes to run the trials of a study, beside the trials."""

    resolver: Resolver
    ledger: Ledger
    folder: epath.Path
    claims: Claims
    session: Session
    groups: Together
    keep_models: bool
    report: Callable[[str], None]

    def run_next(self, trials: Sequence[Trial], most: int | None = None) -> int:
        """Runs the first of these trials that no other process runs, with those that may train
        together with it.

        Args:
          most: run no more; None: any number.

        Returns:
          How many that were; 0: all of them are other processes'.
        """
        size = self.groups.size if most is None else min(self.groups.size, most)
        for number, trial in enumerate(trials):
            with contextlib.ExitStack() as stack:
                claim = stack.enter_context(self.claims.take(trial.address, trial.label))
                if claim is None:
                    continue
                if trial.address in self.ledger.read():  # another process was quicker
                    return 1
                group = [(trial, claim)]
                for other in self.groups.group_of(trials[number:])[1:]:
                    if len(group) == size:
                        break
                    claim = stack.enter_context(self.claims.take(other.address, other.label))
                    if claim is not None and other.address not in self.ledger.read():
                        group.append((other, claim))
                try:
                    self._run(group)
                finally:  # before others may have the trials
                    for each, _ in group:
                        leave_workdir(self._folder_of(each) / "run")
            release_memory()
            return len(group)
        return 0

    def _run(self, group: Sequence[tuple[Trial, Claim]]) -> None:
        """Trains trials, evaluates them and writes their rows."""
        outcomes, kind = self._train_together(group)
        for (trial, claim), outcome in zip(group, outcomes, strict=True):
            folder, columns = self._folder_of(trial), {}
            train_trial: Callable[[], Summary | None] = functools.partial(
                train,
                trial.experiment,
                folder / "run",
                on_step=claim.on_step,
                session=self.session,
            )
            if outcome is not None:
                train_trial = functools.partial(_result, outcome)
                columns = {"together": len(group), "mapped": kind}
            try:
                row = run_trial(trial, self.resolver, folder, train_trial, self.keep_models)
            except SystemExit:
                self.report(f"{trial.label}: stopped and saved; run the same command to go on")
                raise
            except ClaimLostError:
                self.report(f"{trial.label}: taken over by another process, as this one was silent")
                continue
            self.resolver.check_unchanged()  # its address says what it was trained on and asked
            self.ledger.write(row | columns)
            self.report(describe(trial, row, self.resolver.study.metric))

    def _train_together(
        self, group: Sequence[tuple[Trial, Claim]]
    ) -> tuple[Sequence[Outcome], str]:
        """What became of trials that trained as one program, None for those to train alone; and
        how they were mapped."""
        if len(group) == 1:
            return [None], ""
        trials = [trial for trial, _ in group]
        folders = [self._folder_of(trial) for trial in trials]
        sinks = [claim.on_step for _, claim in group]
        with contextlib.ExitStack() as stack:
            logs = [stack.enter_context(_open_log(folder / LOG)) for folder in folders]
            outputs = [functools.partial(_printing_to, log) for log in logs]
            workdirs = [folder / "run" for folder in folders]
            try:
                outcomes, kind = self.groups.train(trials, workdirs, outputs, sinks)
            except Exception as error:  # of the group as a whole: none of its trials is to blame
                self.report(f"{len(group)} trials train one after the other: {error}")
                return [None] * len(group), ""
        if kind:
            self.report(f"{len(group)} trials trained together ({kind})")
        return outcomes, kind

    def _folder_of(self, trial: Trial) -> epath.Path:
        return self.folder / "trials" / trial.address


def _describe_silent(holder: Holder) -> str:
    """What to do about a process that keeps its trial's lock and is stopped, or hangs."""
    return (
        f"{holder.trial}: {holder.place} has it and gave no sign of life for {PATIENCE:.0f} s: it "
        "is stopped, or hangs. Let it go on (kill -CONT), or end it (kill -KILL): then its trial "
        "goes on here"
    )


def _result(outcome: Summary | Exception) -> Summary:
    """What a trial's training gave, in a group."""
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def run_trial(
    trial: Trial,
    resolver: Resolver,
    folder: epath.Path,
    train_trial: Callable[[], Summary | None],
    keep_models: bool = False,
) -> dict[str, Any]:
    """Trains and evaluates; everything that it prints goes to `log.txt` in the folder.

    Returns the row for the ledger: a run that fails has one too, with its error.

    Raises:
      SystemExit: 75 after a signal.
      ClaimLostError: of `train_trial`.
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
        "host": platform.node(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0,
        "versions": library_versions(),
    }
    if trial.value is not None:
        row["value"] = trial.value
    with _open_log(folder / LOG) as log, _printing_to(log):
        try:
            row |= _measure(trial, workdir, resolver.study.measures, train_trial)
            row["status"] = FINISHED
            metric = resolver.study.metric
            if not math.isfinite(row.get(metric, 0.0)):  # one that is not there is an error later
                raise FloatingPointError(f"{metric} is {row[metric]}")
        except ClaimLostError:
            raise
        except FloatingPointError as error:
            row |= {"status": DIVERGED, "error": str(error)}
        except Exception as error:  # whatever fails is kept and shown; the other trials go on
            traceback.print_exc()
            row |= {"status": FAILED, "error": f"{type(error).__name__}: {error}"}
    row["process_bytes"] = peak_memory_bytes()
    row["ended"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    if row["status"] != FAILED and not keep_models:
        for name in ("checkpoints", "model"):
            with contextlib.suppress(OSError):
                files.remove(workdir / name, workdir)
    return row


def _measure(
    trial: Trial,
    workdir: epath.Path,
    functions: Sequence[str],
    train_trial: Callable[[], Summary | None],
) -> dict[str, Any]:
    """Trains where the trial does, and asks what it is asked; the columns of its row."""
    if trial.way != TUNED:
        assert trial.evaluation is not None  # `ways.evaluation_of` has seen to it
        report, columns = ways.answer(trial.way, trial.evaluation, trial.experiment)
        return columns | (_scores(report) if report else {})
    columns = {}
    if trial.stage == BEFORE:
        model = runs.open_run(trial.experiment.init_from or "")
    else:
        columns = _train(workdir, train_trial)
        model = runs.open_run(workdir)
        for name in functions:
            columns |= measures.measure(name, model, trial.experiment)
    columns["fingerprint"] = model.fingerprint
    if trial.evaluation is not None:
        columns |= _scores(evaluate_run(model, trial.evaluation))
    return columns


def _train(workdir: epath.Path, train_trial: Callable[[], Summary | None]) -> dict[str, Any]:
    """Trains, or goes on; the columns of its row."""
    summary = train_trial()
    if summary is None or not summary.finished:
        raise SystemExit(distributed.EXIT_RESTART)
    # its arrays: the tokenizer and the base's files are everybody's
    sizes = storage.file_sizes(workdir / "model")
    artifact = [size for path, size in sizes.items() if "files" not in Path(path).parts]
    return _columns(summary) | {"artifact_bytes": sum(artifact)}


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


def _scores(report: Report) -> dict[str, Any]:
    columns: dict[str, Any] = {}
    if bits := report.bits_per_byte:
        columns["bits_per_byte"] = sum(bits.values()) / len(bits)
        columns |= {f"bits_per_byte/{name}": value for name, value in bits.items()}
    for task, result in report.tasks.items():
        if task not in (TEXT, CHOICE):
            columns |= {f"{task}/{name}": value.value for name, value in result.metrics.items()}
    if choice := report.tasks.get(CHOICE):
        correct = [answer.scores["right"] == 1 for answer in choice.answers]
        clusters = [answer.group for answer in choice.answers]
        groups = [int(cluster) for cluster in clusters if cluster is not None] or None
        quality = proportion_interval(correct, groups=groups)
        columns |= {
            "quality": quality.value,
            "quality_low": quality.low,
            "quality_high": quality.high,
            "questions": quality.n,
            "correct": correct,
        }
        if groups is not None:
            columns["groups"] = groups
    return columns


@contextlib.contextmanager
def _open_log(path: epath.Path) -> Iterator[IO[str]]:
    """A file to append to; one in a bucket is written when the block ends."""
    with contextlib.ExitStack() as stack:
        if storage.is_remote(path):
            local = Path(stack.enter_context(tempfile.TemporaryDirectory())) / path.name
            if storage.is_file(path):
                local.write_bytes(path.read_bytes())
            stack.callback(lambda: storage.upload_file(local, path))
        else:
            local = Path(path)
            local.parent.mkdir(parents=True, exist_ok=True)
        yield stack.enter_context(local.open("a", encoding="utf-8"))


@contextlib.contextmanager
def _printing_to(log: IO[str]) -> Iterator[None]:
    """Sends what is printed to a file."""
    with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        yield
