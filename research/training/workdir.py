"""A run's folder: who may write there, what lies there, and what is left there by a kill."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax

from research.checkpoints import runs
from research.checkpoints.removal import remove_leftovers
from research.checkpoints.step_folders import scan
from research.config import schema
from research.experiment import Experiment
from research.runtime import files, locks, signals, storage
from research.text.tokenizer import Tokenizer
from research.training.metrics import METRICS, TENSORBOARD
from research.training.observers import show
from research.training.summary import SUMMARY, Summary

log = logging.getLogger(__name__)

CHECKPOINTS, MODEL, CONFIG, LOCK = "checkpoints", "model", "config.json", ".lock"
# all that a run writes in its folder
OWN_NAMES = (CHECKPOINTS, MODEL, CONFIG, LOCK, METRICS, SUMMARY, TENSORBOARD, runs.TOKENIZER)
_FOLDERS = (CHECKPOINTS, MODEL, TENSORBOARD)
# a bucket's folder -> what its lock says while it is this process's
_claims: dict[str, str] = {}


@contextlib.contextmanager
def guard_workdir(workdir: Path) -> Iterator[None]:
    """Leaves no new folder behind where nothing came of a run, and says after Ctrl-C what is saved.

    Raises:
      KeyboardInterrupt: the block's, with that message.
    """
    signals.set_ending(lambda: describe_saved(workdir))
    new_folders = [] if storage.is_remote(workdir) else _missing_folders(Path(workdir))

    def remove_new() -> None:
        if new_folders and jax.process_index() == 0:
            _remove_empty(Path(workdir), new_folders)

    try:
        with signals.cleanup(remove_new):
            yield
    except KeyboardInterrupt:  # in a process that is no program of ours
        raise KeyboardInterrupt(f"interrupted: {describe_saved(workdir)}") from None
    finally:
        remove_new()


def claim_workdir(workdir: Path) -> None:
    """Locks the folder for this process, and removes there what a kill left of a save.

    Process 0 does it for all. The lock is held until this process trains there again, or ends. In a
    bucket nothing can be locked: there the newest start has the folder, and `check_claim` ends the
    one before it.

    Raises:
      ValueError: another process is training there, or a file stands where a folder belongs.
      LinkError: something there is a symbolic link out of the folder.
    """
    if jax.process_index() != 0:
        return
    if not storage.is_remote(workdir):
        for name in OWN_NAMES:
            path = Path(workdir) / name
            files.check_no_link(path, workdir)
            if path.exists() and path.is_dir() != (name in _FOLDERS):
                kinds = ("file", "folder") if name in _FOLDERS else ("folder", "file")
                raise ValueError(f"{path} is a %s, and a run has a %s there: move it away" % kinds)
        busy = (
            f"another process is training in {workdir}: wait until it ends, or choose another "
            "--workdir"
        )
        locks.lock_until_exit(Path(workdir) / LOCK, busy)
    else:
        _claims[str(workdir)] = f"{socket.gethostname()} {os.getpid()} {uuid.uuid4()}\n"
        files.atomic_write(storage.absolute(workdir) / LOCK, _claims[str(workdir)])
    for name in (CHECKPOINTS, MODEL):
        remove_leftovers(storage.absolute(workdir) / name)


def check_claim(workdir: Path) -> None:
    """Looks whether `claim_workdir` still keeps other runs out; process 0 does it for all.

    It is cheap, and comes before whatever changes the folder while a run trains.

    Raises:
      LockLostError: the lock, or the whole folder, was moved, removed or replaced; in a bucket,
        another run was started there.
    """
    if jax.process_index() != 0:
        return
    if storage.is_remote(workdir):
        _check_newest(workdir)
        return
    try:
        locks.check_held(Path(workdir) / LOCK)
    except locks.LockLostError as error:
        raise locks.LockLostError(
            f"{error} while this run trains in {workdir}. Another run may begin there unseen, so "
            "this one ends at once and writes nothing more; what was saved stays as it is, and the "
            "same command goes on from there"
        ) from None


def _check_newest(workdir: Path) -> None:
    """Whether no other run was started in a bucket's folder since this process claimed it."""
    claim = _claims.get(str(workdir))
    if claim is None:
        return
    lock = storage.absolute(workdir) / LOCK
    end = "so this one ends and writes nothing more"
    try:
        with storage.storage_errors(workdir):
            holder = lock.read_text() if lock.exists() else None
    except FileNotFoundError:
        holder = None
    if holder is None:
        raise locks.LockLostError(
            f"{lock} was removed, or its folder or bucket, while this run trains there: {end}"
        )
    if holder != claim:
        raise locks.LockLostError(
            f"{lock} is of {holder.strip()}: another run was started in {workdir} while this one "
            f"trains there, {end}. Give each run a --workdir of its own"
        )


def own_files(experiment: Experiment, tokenizer: Tokenizer) -> dict[str, bytes]:
    """The small files that say what a run is: name -> content."""
    config = files.json_text(schema.to_dict(experiment))
    return {CONFIG: config.encode(), runs.TOKENIZER: tokenizer.to_json().encode()}


def open_workdir(workdir: Path, experiment: Experiment, tokenizer: Tokenizer) -> None:
    """Writes config.json and tokenizer.json there; process 0 does it for all.

    Raises:
      LockLostError: as of `check_claim`.
    """
    check_claim(workdir)
    if jax.process_index() == 0:
        for name, content in own_files(experiment, tokenizer).items():
            files.atomic_write(workdir / name, content)


def restore_files(workdir: Path, contents: Mapping[str, bytes]) -> None:
    """Writes those of a run's own files again that were lost or changed meanwhile, and says so.

    Process 0 does it for all; in a bucket nobody looks.
    """
    if jax.process_index() != 0 or storage.is_remote(workdir):
        return
    for name, content in contents.items():
        path = Path(workdir) / name
        what = "replaced by a link" if path.is_symlink() else "changed"
        try:
            if not path.is_symlink() and path.read_bytes() == content:
                continue
        except FileNotFoundError:
            what = "removed"
        except OSError as error:
            what = f"made unreadable ({error.strerror})"
        try:
            files.atomic_write(path, content)
            log.warning("%s was %s while the run trains: it is written again", path, what)
        except OSError as error:  # the checkpoints have what it says
            log.warning(
                "%s was %s while the run trains, and cannot be written again: %s", path, what, error
            )


def write_summary(workdir: Path, summary: Summary) -> None:
    """Writes and shows the summary of a run that is over; process 0 does it for all."""
    check_claim(workdir)
    if jax.process_index() == 0:
        summary.write(workdir)
        show(summary.describe())


def describe_saved(workdir: Path) -> str:
    """What is left of a run that was interrupted, for its user."""
    try:
        steps, _ = scan(storage.absolute(workdir) / CHECKPOINTS)
    except OSError as error:
        return f"what is saved cannot be read ({error})"
    if not steps:
        return f"no step is saved in {workdir}"
    return f"step {steps[-1]} is saved in {workdir}; run the same command to go on there"


def leave_workdir(workdir: Path) -> None:
    """Gives up the folder's lock while this process lives on: another may go on there."""
    if jax.process_index() == 0 and not storage.is_remote(workdir):
        locks.remove_lock(Path(workdir) / LOCK)


def _missing_folders(workdir: Path) -> list[Path]:
    """The folder and those above it that are not there yet, from below."""
    return [place for place in (workdir, *workdir.parents) if not os.path.lexists(place)]


def _remove_empty(workdir: Path, new_folders: list[Path]) -> None:
    """Removes new folders that hold nothing, or the lock alone."""
    if [path.name for path in workdir.glob("*")] == [LOCK]:
        locks.remove_lock(workdir / LOCK)
    with contextlib.suppress(OSError):  # it holds something
        for folder in new_folders:
            folder.rmdir()
