"""How one of several processes tells the others why it ends, so that each ends with that reason.

Where nobody tells them, they find out that it is gone: by a collective that breaks, which says
nothing of the reason, or because JAX aborts them, with a stack trace of its own, as soon as
process 0 is gone, which coordinates.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Callable

from jax._src import distributed  # the coordinator's table of keys has no public name

# seconds between two looks at the table, and the most that process 0 waits for the others' end
_INTERVAL, _MAX_WAIT = 0.25, 3.0
_FAILED, _LEFT = "graft/failed/", "graft/left/"
_THREAD = "failure notice"

_is_over = threading.Event()


def place() -> tuple[int, int] | None:
    """Which process this is, and of how many; None: it has not joined the others."""
    state = distributed.global_state
    return (state.process_id, state.num_processes or 1) if state.client else None


def tell(message: str, status: int) -> None:
    """Tells the others why this process ends, and with which exit status."""
    _write(_FAILED, f"{status} {message}")


def leave() -> None:
    """Comes right before the end of a process that failed, or that heard of one: process 0 waits
    until all others are at this point."""
    _write(_LEFT, "")
    number, processes = place() or (1, 1)
    last = time.monotonic() + _MAX_WAIT
    while number == 0 and len(_read(_LEFT)) < processes and time.monotonic() < last:
        time.sleep(_INTERVAL / 5)


def find_notice() -> tuple[str, int] | None:
    """Which other process ends and why, and its exit status; None: no process told anything."""
    number, _ = place() or (0, 1)
    for key, text in _read(_FAILED):
        other = key.rpartition("/")[2]
        if other != str(number):
            status, _, message = text.partition(" ")
            return f"ends with process {other}: {message}", int(status)
    return None


def listen(
    end: Callable[[str, int], object], each_second: Callable[[], object] = lambda: None
) -> None:
    """Calls `end` in a thread with what another process tells, until `stop_listening`.

    Args:
      each_second: is called there each second.

    Comes after the process has joined the others: JAX aborts one that reads the table before.
    """

    def look() -> None:
        looks = round(1 / _INTERVAL)
        for number in itertools.count():
            if _is_over.wait(_INTERVAL):
                return
            if number % looks == 0:
                each_second()
            if notice := find_notice():
                end(*notice)
                return

    _is_over.clear()
    threading.Thread(target=look, name=_THREAD, daemon=True).start()


def stop_listening() -> None:
    """Comes before the process leaves the others, for the same reason."""
    _is_over.set()
    for thread in threading.enumerate():
        if thread.name == _THREAD and thread is not threading.current_thread():
            thread.join()


def _write(kind: str, text: str) -> None:
    client = distributed.global_state.client
    if client is not None:
        with contextlib.suppress(Exception):  # process 0 is gone, which all notice by themselves
            client.key_value_set(f"{kind}{distributed.global_state.process_id}", text)


def _read(kind: str) -> list[tuple[str, str]]:
    client = distributed.global_state.client
    if client is not None:
        with contextlib.suppress(Exception):
            return client.key_value_dir_get(kind)
    return []
