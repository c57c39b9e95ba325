"""Locks between the processes of one machine, as files: a lock dies with the process that holds it.

In a bucket there are none.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import filelock

# what `lock_until_exit` holds
_process_locks: dict[Path, filelock.BaseFileLock] = {}


@contextlib.contextmanager
def lock_file(path: Path, busy: str | None = None) -> Iterator[None]:
    """Holds a lock inside the block.

    Args:
      path: the lock's file; it and its folder are made, and stay.
      busy: the message of the error if another process holds it; None: waits for that process.

    Raises:
      ValueError: another process holds it.
    """
    lock = _acquire(path, busy)
    try:
        yield
    finally:
        lock.release()


def lock_until_exit(path: Path, busy: str) -> None:
    """Takes a lock that this process holds until it takes it again, or ends.

    Raises:
      ValueError: another process holds it; the message is `busy`.
    """
    if path in _process_locks:
        _process_locks.pop(path).release()
    _process_locks[path] = _acquire(path, busy)


def _acquire(path: Path, busy: str | None) -> filelock.BaseFileLock:
    path.parent.mkdir(parents=True, exist_ok=True)
    # no soft locks: where a file system has no others, they would outlive their process
    lock = filelock.FileLock(
        path, thread_local=False, fallback_to_soft=False, preserve_lock_file=True
    )
    try:
        lock.acquire(blocking=busy is None)
    except filelock.Timeout:
        raise ValueError(busy) from None
    return lock
