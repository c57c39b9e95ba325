"""Locks between the processes of one machine, as files: a lock dies with the process that holds it.

The file names its holder. In a bucket there are none. A file that is removed, replaced or moved
with its folder keeps nobody out any more: who holds it for long looks now and then (`check_held`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import os
import platform
from collections.abc import Iterator
from pathlib import Path

import filelock

from research.runtime import files

# any user of the machine may wait for a lock in a folder that several share
_MODE = 0o666
_FIELDS = {"process", "host", "since"}
# of taking a lock whose file others replace meanwhile
_TRIES = 100


class LockLostError(OSError):
    """The file of a lock that this process holds is gone or another; the message says which."""


@dataclasses.dataclass(frozen=True)
class _Lock:
    """A lock that is held, and which file it is (`stat`)."""

    lock: filelock.BaseFileLock
    file: os.stat_result

    def is_at(self, path: Path) -> bool:
        """Whether the file of that name is the one that is locked."""
        try:
            return os.path.samestat(os.lstat(path), self.file)
        except (FileNotFoundError, NotADirectoryError):
            return False


# what `lock_until_exit` holds
_process_locks: dict[Path, _Lock] = {}


@contextlib.contextmanager
def lock_file(path: Path, busy: str | None = None) -> Iterator[None]:
    """Holds a lock inside the block.

    Args:
      path: the lock's file; it and its folder are made, and stay.
      busy: the start of the error's message if another process holds it, before who that is; None:
        waits for that process.

    Raises:
      ValueError: another process holds it.
      LinkError: the file is a symbolic link.
    """
    process_lock = _acquire(path, busy)
    try:
        yield
    finally:
        process_lock.lock.release()


def lock_until_exit(path: Path, busy: str) -> None:
    """Takes a lock that this process holds until it takes it again, or ends.

    Raises:
      ValueError: another process holds it; the message begins with `busy` and says who.
      LinkError: the file is a symbolic link.
    """
    if path in _process_locks:
        _process_locks.pop(path).lock.release()
    _process_locks[path] = _acquire(path, busy)


def check_held(path: Path) -> None:
    """Looks whether a lock of `lock_until_exit` still keeps others out: one look at its file.

    Raises:
      LockLostError: the file was removed or replaced, or is no longer at this path.
    """
    if _process_locks[path].is_at(path):
        return
    if not path.parent.exists():
        raise LockLostError(f"{path.parent} was moved or removed")
    if not os.path.lexists(path):
        raise LockLostError(f"{path} was removed")
    raise LockLostError(f"{path} was replaced by another file ({describe_holder(path)})")


def remove_lock(path: Path) -> None:
    """Gives up a lock of `lock_until_exit`, and removes its file; another process makes its own."""
    if process_lock := _process_locks.pop(path, None):
        if process_lock.is_at(path):  # not another process's
            path.unlink(missing_ok=True)
        process_lock.lock.release()


def describe_holder(path: Path) -> str:
    """Who took the lock last, such as "process 12 on a, since 2026-01-01 10:00:00"."""
    holder = _read_holder(path)
    if not holder:
        return "the lock does not say which"
    return f"process {holder['process']} on {holder['host']}, since {holder['since']}"


def _acquire(path: Path, busy: str | None) -> _Lock:
    path.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(_TRIES):
        files.check_no_link(path, path.parent)
        statuses: list[os.stat_result] = []
        # no soft locks: where a file system has no others, they would outlive their process
        lock = filelock.FileLock(
            path,
            mode=_MODE,
            thread_local=False,
            fallback_to_soft=False,
            preserve_lock_file=True,
            on_acquired=lambda descriptor, statuses=statuses: statuses.append(os.fstat(descriptor)),  # type: ignore[misc]
        )
        try:
            lock.acquire(blocking=busy is None)
        except filelock.Timeout:
            raise ValueError(f"{busy} ({describe_holder(path)}){_hard_link_note(path)}") from None
        process_lock = _Lock(lock, statuses[-1])
        if process_lock.is_at(path):
            if process_lock.file.st_nlink == 1:
                _write_holder(path, process_lock)
                return process_lock
            path.unlink()  # one file with another folder's lock, which stays there
        lock.release()
    raise OSError(f"{path} cannot be locked: other programs replace it all the time")


def _hard_link_note(path: Path) -> str:
    """What to do about a lock that is busy and may be another folder's."""
    with contextlib.suppress(OSError):
        if os.lstat(path).st_nlink > 1:
            return (
                f". {path} is a hard link, one file with another folder's lock, as cp -l makes "
                "them: if nothing runs in this folder, remove it and start again"
            )
    return ""


def _read_holder(path: Path) -> dict[str, object]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) and content.keys() == _FIELDS else {}


def _write_holder(path: Path, process_lock: _Lock) -> None:
    """Names this process in a lock's file that is empty or names another; others stay as they are.

    In place, as the lock is the file's; no link is followed, and no other file written.
    """
    since = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    holder = {"process": os.getpid(), "host": platform.node(), "since": since}
    with contextlib.suppress(OSError):  # it only helps who reads it
        descriptor = os.open(path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
        with open(descriptor, "r+", encoding="utf-8") as file:
            status = os.fstat(descriptor)
            if not os.path.samestat(status, process_lock.file) or status.st_nlink > 1:
                return
            if status.st_size and not _read_holder(path):
                return
            file.truncate(0)
            file.write(json.dumps(holder) + "\n")
