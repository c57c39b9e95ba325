"""Runs the phases of a run one after the other; each is a run in a folder of its own.

So each is checked, locked, saved and resumed as every run is: start the whole again, and finished
phases are passed over and the one that was stopped goes on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from research import methods, tree
from research.adapters import merging
from research.adapters.certificate import MergeCertificate
from research.checkpoints import runs
from research.checkpoints.checkpointer import open_checkpoint
from research.checkpoints.step_folders import PHASES
from research.experiment import Experiment
from research.phases.phased import MERGED, PhasedExperiment
from research.phases.rollouts import EqualRewardsError, read_prompts, write_rollouts
from research.runtime import files, storage
from research.training import continuation
from research.training.loop import train
from research.training.observers import show
from research.training.session import Session
from research.training.summary import SUMMARY, Summary
from research.training.workdir import CHECKPOINTS, MODEL

# of a summary: what phases have in common, or what their numbers sum up to
_SUMS = ("steps", "skipped", "seconds", "tokens", "examples", "flops")


def train_phases(
    phased: PhasedExperiment,
    workdir: str | Path,
    dry_run: bool = False,
    session: Session | None = None,
) -> Summary | None:
    """Runs what is left of a run, to its end or to a signal; returns the last phase's summary.

    All phases are checked before the first step: those whose start is not there yet as if they
    began where the first does.

    Raises:
      ValueError: as `train`; the folder holds a run of another kind.
    """
    session = session or Session()
    check_folder(workdir, bool(phased.phases))
    if not phased.phases:
        return train(phased.common, workdir, dry_run, session=session)
    folder = storage.absolute(workdir)
    folders = [folder / phased.folder(number) for number in range(len(phased.phases))]
    _check_known(folder / PHASES, [each.name for each in folders])
    experiments = phased.experiments(folder)
    for number in range(len(experiments)):
        if dry_run or (number and not _is_finished(folders[number - 1])):
            _check(phased, number, experiments, folders, session)
    summaries: list[Summary] = []
    for number, experiment in enumerate([] if dry_run else experiments):
        _title(phased, number)
        phase = phased.phases[number]
        if phase.merge:
            _merge(folders[number - 1])
        if phase.rollouts is not None:
            path, start = phased.rollouts_file(number, folder), phased.start(number, folder)
            if start is None:
                raise ValueError(f"{_name(phased, number)}: rollouts need an `init_from` to answer")
            try:
                write_rollouts(phase.rollouts, start, path, number, experiment.mesh)
            except EqualRewardsError as error:
                if not summaries:
                    raise
                show(f"the run ends before {_name(phased, number)}: {error}")
                break
        if number and "init_from" not in phased.phases[number].changes:
            _check_began_there(experiment, folders[number])
        summary = train(experiment, folders[number], session=session)
        assert summary is not None  # it was no dry run
        summaries.append(summary)
        if jax.process_index() == 0:
            _write_summary(phased, summaries, folder)
        if not summary.finished:
            break
    return summaries[-1] if summaries else None


def check_folder(workdir: str | Path, is_phased: bool) -> None:
    """Refuses a folder that holds a run of one experiment for one of phases, and the reverse.

    Raises:
      ValueError: it does.
    """
    folder = storage.absolute(workdir)
    others = (CHECKPOINTS, MODEL) if is_phased else (PHASES,)
    if any(storage.is_folder(folder / name) for name in others):
        what = "of one experiment" if is_phased else "in phases"
        raise ValueError(f"{workdir} holds a run {what}; choose another --workdir")


def _check_known(folder: Path, names: Sequence[str]) -> None:
    """Refuses a folder with phases of another plan: the run opens as the last that is there.

    Raises:
      ValueError: naming one.
    """
    numbered = [n for n in storage.names_in(folder) if n.partition("_")[0].isdecimal()]
    others = sorted(set(numbered) - set(names))
    if others:
        raise ValueError(
            f"{folder / others[0]} is no phase of the config, which has {', '.join(names)}: move "
            "it away, or put the config back"
        )


def _is_finished(folder: Path) -> bool:
    return storage.is_file(folder / SUMMARY)


def _check(
    phased: PhasedExperiment,
    number: int,
    experiments: list[Experiment],
    folders: list[Path],
    session: Session,
) -> None:
    """Checks a phase before anything trains, as a dry run does."""
    experiment, note = experiments[number], ""
    if phased.phases[number].merge:
        _check_merge(phased, number, experiments)
    is_behind = number and "init_from" not in phased.phases[number].changes
    try:
        if (rollouts := phased.phases[number].rollouts) is not None:
            read_prompts(rollouts, number)
            if is_behind and not phased.phases[number].merge:
                before = experiments[number - 1].method
                continuation.check_method(folders[number - 1], before, experiment.method)
            return  # what it reads is not there yet
        if is_behind and not _is_finished(folders[number - 1]):
            first, before = experiments[0], experiments[number - 1]
            if not phased.phases[number].merge:
                continuation.check_method(folders[number - 1], before.method, experiment.method)
            if first.init_from is None and experiment.loss.needs_reference:
                show(f"{_name(phased, number)}: what it starts from is not there yet; checked then")
                return
            stand_in: dict[str, Any] = {"init_from": first.init_from, "model": first.model}
            stand_in |= {"tokenizer": first.tokenizer, "keep_optimizer": False}
            experiment = dataclasses.replace(experiment, **stand_in)
            note = ", checked as if it began where the first phase does"
        show(f"{_name(phased, number)}{note}")
        train(experiment, folders[number], dry_run=True, session=session)
    except (ValueError, FileNotFoundError) as error:
        raise ValueError(f"{_name(phased, number)}: {error}") from error


def _check_merge(phased: PhasedExperiment, number: int, experiments: list[Experiment]) -> None:
    """Raises ValueError where the phase before leaves nothing that could be merged."""
    first, method = experiments[0], experiments[number - 1].method
    model = first.model or (runs.open_run(first.init_from).model if first.init_from else None)
    if model is None:
        return
    where = f"phases[{number}].merge"
    try:
        shapes = merging.attached_shapes(model, method)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    if set(tree.flatten(shapes)) == set(methods.trainable(shapes, method)):
        raise ValueError(
            f"{where}: {phased.phases[number - 1].name} trains the whole model ({method.kind}): "
            "nothing of it is attached to a base that could be merged"
        )


def _name(phased: PhasedExperiment, number: int) -> str:
    return f"phase {number + 1} of {len(phased.phases)}, {phased.phases[number].name}"


def _title(phased: PhasedExperiment, number: int) -> None:
    if jax.process_index() == 0:
        show(f"\n{_name(phased, number)}")


def _check_began_there(experiment: Experiment, folder: Path) -> None:
    """Refuses to take a phase as it is that began where the one before it no longer ends.

    Raises:
      ValueError: it did.
    """
    try:
        metadata = open_checkpoint(folder).metadata()
    except FileNotFoundError:  # it has not begun
        return
    start = runs.open_run(experiment.init_from).fingerprint if experiment.init_from else None
    if metadata.get("initial", start) != start:
        raise ValueError(
            f"{folder} began where the phase before it ended then, which has been trained on since "
            "or anew: move it away, and it is trained from there"
        )


def _merge(before: Path) -> None:
    """The adapters of a finished phase merged into their base, once for each end that it had.

    Raises:
      ValueError: several processes would do it.
    """
    try:
        certificate = MergeCertificate.of(runs.open_run(before / MERGED))
        if certificate.adapter.fingerprint == runs.open_run(before).fingerprint:
            return
    except FileNotFoundError:
        pass
    if jax.process_count() > 1:
        raise ValueError(
            "phases: merge works in one process; merge with graft adapters merge "
            f"--from {before} --out {before / MERGED}, and start again"
        )
    show(f"merging    the adapters of {before}")
    files.remove(before / MERGED, before)  # of an end that it had before
    merging.merge(runs.open_run(before), before / MERGED)


def _write_summary(phased: PhasedExperiment, summaries: list[Summary], workdir: Path) -> None:
    """`summary.json` of the whole: the last phase's metrics, sums, and every phase."""
    content: dict[str, Any] = dict(summaries[-1].metrics)
    content |= {name: sum(getattr(each, name) for each in summaries) for name in _SUMS}
    content["finished"] = len(summaries) == len(phased.phases) and summaries[-1].finished
    content["phases"] = {
        phase.name: summary.to_dict()
        for phase, summary in zip(phased.phases, summaries, strict=False)
    }
    files.write_json(workdir / SUMMARY, content)
