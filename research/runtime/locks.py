"""Locks between the processes of one machine, as files: a lock dies with the process that holds it.

The file names its holder. In a bucket there are none.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import platform
from collections.abc import Iterator
from pathlib import Path

import filelock

from research.runtime import files

# what `lock_until_exit` holds
_process_locks: dict[Path, filelock.BaseFileLock] = {}
# any user of the machine may wait for a lock in a folder that several share
_MODE = 0o666
_FIELDS = {"process", "host", "since"}


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
    lock = _acquire(path, busy)
    try:
        yield
    finally:
        lock.release()


def lock_until_exit(path: Path, busy: str) -> None:
    """Takes a lock that this process holds until it takes it again, or ends.

    Raises:
      ValueError: another process holds it; the message begins with `busy` and says who.
      LinkError: the file is a symbolic link.
    """
    if path in _process_locks:
        _process_locks.pop(path).release()
    _process_locks[path] = _acquire(path, busy)


def remove_lock(path: Path) -> None:
    """Gives up a lock of `lock_until_exit`, and removes its file; another process makes its own."""
    if lock := _process_locks.pop(path, None):
        path.unlink(missing_ok=True)
        lock.release()


def describe_holder(path: Path) -> str:
    """Who took the lock last, such as "process 12 on a, since 2026-01-01 10:00:00"."""
    holder = _read_holder(path)
    if not holder:
        return "the lock does not say which"
    return f"process {holder['process']} on {holder['host']}, since {holder['since']}"


def _acquire(path: Path, busy: str | None) -> filelock.BaseFileLock:
    path.parent.mkdir(parents=True, exist_ok=True)
    files.check_no_link(path, path.parent)
    # no soft locks: where a file system has no others, they would outlive their process
    lock = filelock.FileLock(
        path, mode=_MODE, thread_local=False, fallback_to_soft=False, preserve_lock_file=True
    )
    try:
        lock.acquire(blocking=busy is None)
    except filelock.Timeout:
        raise ValueError(f"{busy} ({describe_holder(path)})") from None
    _write_holder(path)
    return lock


def _read_holder(path: Path) -> dict[str, object]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) and content.keys() == _FIELDS else {}


def _write_holder(path: Path) -> None:
    """Names this process in a lock's file that is empty or names another; others stay as they are.

    In place, as the lock is the file's; a link is not followed.
    """
    since = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    holder = {"process": os.getpid(), "host": platform.node(), "since": since}
    with contextlib.suppress(OSError):  # it only helps who reads it
        descriptor = os.open(path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
        with open(descriptor, "r+", encoding="utf-8") as file:
            if os.fstat(descriptor).st_size and not _read_holder(path):
                return
            file.truncate(0)
            file.write(json.dumps(holder) + "\n")
