"""Ctrl-C and SIGTERM: they end a program at any moment, with one line that says what is saved.

Python itself raises KeyboardInterrupt at some line of some library, which may swallow it, or waits
with it until a compilation is over. Here a thread receives the signals, so that neither happens.
This imports the standard library alone: programs call `end_program` before all else.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}
# Signals within this time are one: `timeout` and others send theirs to a process and to its group.
SAME_SECONDS = 0.3
_HEARD = 0  # no signal: what `hold` writes behind those that came

# what the first signal that asks a program to stop does besides, whoever collects it
_listeners: list[Callable[[], object]] = []


class StopRequest:
    """Whether a signal asked the program to stop; the second one ends it.

    Attributes:
      received: whether one came.
    """

    def __init__(self, forward: Callable[[], None] | None = None):
        """`forward`: what the first signal does besides."""
        self.received = False
        self._forward = forward
        self._first: float | None = None

    def receive(self) -> bool:
        """Takes a signal, and returns whether it is the second."""
        now = time.monotonic()
        if self._first is not None:
            return now - self._first > SAME_SECONDS
        self._first = now
        self.received = True
        if self._forward is not None:
            self._forward()
        for listener in list(_listeners):
            listener()
        return False


class _Program:
    """What a signal does at this moment, and what is said then.

    Attributes:
      name: of the program, for its line; "" where no program has called `end_program`.
      describe: what is saved, and how to go on.
      status: exit status; None: 128 and the signal's number, as of a program that dies of it.
      request: who waits for a signal; None: the signal ends the program.
      cleanups: what is called before such an end, by any key.
    """

    def __init__(self) -> None:
        self.name = ""
        self.describe: Callable[[], str] = str
        self.status: int | None = None
        self.request: StopRequest | None = None
        self.cleanups: dict[object, Callable[[], None]] = {}
        self.pipe = -1  # where Python's own handler writes each signal's number
        self.is_heard = threading.Event()
        self._ending = threading.Lock()

    def receive(self, number: int) -> None:
        """Takes a signal, in any thread."""
        if self.request is None or self.request.receive():
            self.end(number)

    def end(self, number: int) -> None:
        """Ends the process at once, without waiting for any of its threads."""
        if not self._ending.acquire(blocking=False):
            return  # another thread is at it
        message = f"ended by {NAMES[signal.Signals(number)]}"
        texts: list[str] = []
        _within(2, lambda: texts.append(self.describe()))
        message = "; ".join([message, *filter(None, texts)])
        for cleanup in list(self.cleanups.values()):
            _within(10, cleanup)
        _within(1, sys.stdout.flush)
        line_end = "\n" if sys.stderr is not None and sys.stderr.isatty() else ""
        with contextlib.suppress(OSError):
            os.write(2, f"{line_end}{self.name}: {message}\n".encode(errors="replace"))
        os._exit(128 + number if self.status is None else self.status)


_program = _Program()


def end_program(name: str) -> None:
    """Lets SIGINT and SIGTERM end this program from now on, at once and with one line.

    The exit status is 130 or 143, unless `set_ending` names another. A signal that the program's
    parent ignores (`nohup`, a shell's `&`) stays ignored. A program that another one of Graft
    started also ends with that one: see `research.runtime.children`. What `hold` kept is heard now.
    """
    if _program.name or threading.current_thread() is not threading.main_thread():
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    _program.name, _program.pipe = name, writing
    threading.Thread(target=_receive, args=(reading,), name="signals", daemon=True).start()
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _ignore)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    os.register_at_fork(after_in_child=_forget)
    atexit.register(_ignore_at_exit)  # the first one registered runs last
    if "GRAFT_PARENT" in os.environ:  # few programs are children
        from research.runtime import children

        children.follow_parent()


def hold() -> None:
    """Keeps signals from now on for the program that takes this one's place (`os.exec`).

    Between the two nobody hears them: the new one ends by them when it calls `end_program`.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    if _program.name:  # those that came before are heard here
        os.write(_program.pipe, bytes([_HEARD]))
        _program.is_heard.wait(SAME_SECONDS)


def release() -> None:
    """Hears signals again, those that came since `hold` too: no program took the place."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def set_ending(describe: Callable[[], str] | str, status: int | None = None) -> None:
    """Says what a signal's line tells from now on, after its name: what is saved, how to go on.

    Args:
      describe: the text, or what makes it; called in another thread.
      status: the exit status; None: 128 and the signal's number.
    """
    _program.describe = describe if callable(describe) else lambda: describe
    _program.status = status


@contextlib.contextmanager
def cleanup(function: Callable[[], None]) -> Iterator[None]:
    """Calls `function` if a signal ends the program inside the block; in another thread."""
    key = object()
    _program.cleanups[key] = function
    try:
        yield
    finally:
        del _program.cleanups[key]


@contextlib.contextmanager
def collect(request: StopRequest, numbers: Sequence[int] = SIGNALS) -> Iterator[None]:
    """Gives signals to `request` inside the block; the second one ends the program.

    Where no program has called `end_program`, the second does what it did before.
    """
    if _program.name:
        _program.request, before_request = request, _program.request
        try:
            yield
        finally:
            _program.request = before_request
        return
    before: dict[int, Any] = {}

    def receive(number: int, frame: object) -> None:
        if request.receive():
            signal.signal(number, before[number])
            signal.raise_signal(number)

    for number in numbers:
        with contextlib.suppress(ValueError):  # not the main thread: signals are not ours
            before[number] = signal.signal(number, receive)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def listen(function: Callable[[], object]) -> Iterator[None]:
    """Calls `function` when a signal inside the block asks for a stop; in any thread.

    A run that collects the signal may be over before it looks: what runs several has to know.
    """
    _listeners.append(function)
    try:
        yield
    finally:
        _listeners.remove(function)


def _receive(reading: int) -> None:
    """Reads what Python's own handler writes: the number of each signal."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # this thread handles none of them
    while True:
        for number in os.read(reading, 64):
            if number in SIGNALS:
                _program.receive(number)
            elif number == _HEARD:
                _program.is_heard.set()


def _ignore(number: int, frame: object) -> None:
    """Handler that leaves all to the thread."""


def _ignore_at_exit() -> None:
    """The last thing that runs: the exit status is the program's own from here on."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _forget() -> None:
    """In a forked child: the pipe is its parent's."""
    _program.name = ""
    _program.request = None
    _program.cleanups.clear()
    signal.set_wakeup_fd(-1)
    for number in SIGNALS:
        if signal.getsignal(number) is _ignore:
            signal.signal(number, signal.SIG_DFL)


def _within(seconds: float, function: Callable[[], object]) -> None:
    """Calls a function, and waits no longer than so many seconds for it."""

    def call() -> None:
        with contextlib.suppress(Exception):
            function()

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(seconds)
