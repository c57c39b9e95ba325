"""Last words of a process that JAX aborts because another process of the run is gone.

JAX aborts it in a thread of C++, with a stack trace and no Python exception, as soon as process 0
is gone, which coordinates, or once another one gave no sign of life for its heartbeat limit. So
every process leaves beats in the coordinator's table, process 0 says there whose beats stopped,
and SIGABRT is answered with which process that is, and with a status.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import time
from collections.abc import Callable
from typing import Any

from jax._src import distributed  # the coordinator's table of keys has no public name

# seconds without a beat after which process 0 says so; far below the limit at which JAX aborts
SILENCE = 5.0
_BEATS, _SILENT = "graft/beat/", "graft/silent/"
_CONNECTION_SECONDS = 1.0  # a coordinator that is alive greets at once who connects

# what the C library calls at SIGABRT: it must live as long as the process
_handler: Any = None


class Watch:
    """Who of the other processes gives no sign of life, as process 0 sees it.

    Attributes:
      silent: their numbers.
    """

    def __init__(self) -> None:
        self.silent: tuple[int, ...] = ()
        self._count = 0
        self._beats: dict[int, tuple[str, float]] = {}  # process -> its last beat, and when

    def look(self) -> None:
        """Leaves a beat and looks who else did; for calls a second or less apart."""
        client, number = distributed.global_state.client, distributed.global_state.process_id
        if client is None:
            return
        self._count += 1
        with contextlib.suppress(Exception):  # process 0 is gone: `find_missing` sees that
            client.key_value_set(f"{_BEATS}{number}", str(self._count), allow_overwrite=True)
            if number == 0:
                silent = self.find_silent(client.key_value_dir_get(_BEATS), time.monotonic())
                if silent != self.silent:
                    client.key_value_set(f"{_SILENT}0", _text(silent), allow_overwrite=True)
                    self.silent = silent
            elif rows := client.key_value_dir_get(_SILENT):
                others = map(int, rows[0][1].split())
                self.silent = tuple(other for other in others if other != number)

    def find_silent(self, rows: list[tuple[str, str]], now: float) -> tuple[int, ...]:
        """The processes whose beat in the table's rows (key, beat) did not change for SILENCE."""
        before, self._beats = self._beats, {}
        for key, beat in rows:
            process = int(key.rpartition("/")[2])
            last = before.get(process, (beat, now))
            self._beats[process] = last if last[0] == beat else (beat, now)
        return tuple(sorted(p for p, (_, when) in self._beats.items() if now - when > SILENCE))

    def leave(self) -> None:
        """Takes the beat away at this process's end: it is not missed."""
        if client := distributed.global_state.client:
            with contextlib.suppress(Exception):
                client.key_value_delete(f"{_BEATS}{distributed.global_state.process_id}")


def find_missing(silent: tuple[int, ...]) -> tuple[int, ...]:
    """The processes that are gone: those that are silent, or process 0, which does not answer."""
    if silent or distributed.global_state.process_id == 0 or _coordinator_answers():
        return silent
    return (0,)


def describe(missing: tuple[int, ...]) -> str:
    """Such as "process 1 is gone, or gives no sign of life"; none is "another process"."""
    names = " and ".join(f"process {number}" for number in missing) or "another process"
    return f"{names} {'are' if len(missing) > 1 else 'is'} gone, or cannot be reached"


def answer_abort(watch: Watch, end: Callable[[tuple[int, ...]], object]) -> None:
    """Calls `end` with the lost processes when JAX aborts this one because of them.

    An abort of any other kind goes on as it would: nobody is lost then.
    """

    def receive(number: int) -> None:
        with contextlib.suppress(Exception):
            if missing := find_missing(watch.silent):
                end(missing)

    global _handler
    _handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(receive)
    # Python's own handlers run in the main thread once it is back in Python: that is never
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).signal(int(signal.SIGABRT), _handler)


def _coordinator_answers() -> bool:
    """Whether process 0 takes a connection and greets, as gRPC does."""
    address = distributed.global_state.coordinator_address or os.environ["JAX_COORDINATOR_ADDRESS"]
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), _CONNECTION_SECONDS) as server:
            server.settimeout(_CONNECTION_SECONDS)
            return bool(server.recv(1))
    except OSError:
        return False


def _text(numbers: tuple[int, ...]) -> str:
    return " ".join(map(str, numbers))
