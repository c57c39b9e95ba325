"""What watches a run: TensorBoard, the progress bar, copies in a bucket. It neither blocks nor ends
the run.

An observer works in a thread of its own. What it cannot take, because a disk, a terminal or a
network does not answer or refuses, is lost, and that is said once; metrics.jsonl has every line.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from research.runtime import terminal

log = logging.getLogger(__name__)

WAITING = 1000  # calls that may wait for an observer
CLOSING_SECONDS = 10.0  # for what is still to be shown at the end


class Observer:
    """A thread that makes calls one after another, for whoever must not wait for them."""

    def __init__(self, name: str):
        """`name`: what it is called in the line that tells of a loss."""
        self._name, self._loses = name, False
        self._calls: queue.Queue[Callable[[], object] | None] = queue.Queue(WAITING)
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def push(self, call: Callable[[], object]) -> None:
        """Makes a call soon, or never where too many wait already."""
        try:
            self._calls.put_nowait(call)
        except queue.Full:
            self._lose("it does not keep up")

    def wait(self, seconds: float = CLOSING_SECONDS) -> bool:
        """Waits for the calls so far; whether they are done by then."""
        event = threading.Event()
        self.push(event.set)
        return event.wait(seconds)

    def close(self, seconds: float = CLOSING_SECONDS) -> None:
        """Makes the calls that wait, and ends; what is not done by then is lost."""
        if not self._thread.is_alive():
            return
        deadline = time.monotonic() + seconds
        with contextlib.suppress(queue.Full):
            self._calls.put(None, timeout=seconds)
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            self._lose("it does not answer")

    def abandon(self) -> None:
        """Ends without the calls that wait."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._calls.get_nowait()
        with contextlib.suppress(queue.Full):
            self._calls.put_nowait(None)

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            try:
                call()
            except Exception as error:  # whatever it is, the run goes on
                self._lose(str(error) or type(error).__name__)

    def _lose(self, why: str) -> None:
        if not self._loses:
            self._loses = True
            # in a thread: standard error may be what does not answer
            message = "%s loses something: %s. The run goes on; metrics.jsonl has every line"
            arguments = (message, self._name, why)
            threading.Thread(target=log.warning, args=arguments, daemon=True).start()


class TensorBoard(Observer):
    """Writes scalars to TensorBoard's files.

    tensorboardX's own thread waits by the wall clock: set back by a year it would sleep as long.
    """

    def __init__(self, folder: Path, first_step: int):
        """Opens a file in `folder`, which hides what files before it have of `first_step` on."""
        _import_tensorboardx()
        super().__init__("TensorBoard")
        self._folder = folder
        self.push(lambda: self._open(first_step))

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes the scalars of a step."""
        if not scalars:
            return
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=name, simple_value=v) for name, v in scalars.items()]
        event = Event(step=step, wall_time=time.time(), summary=Summary(value=values))
        self.push(lambda: self._write(event))

    def flush(self) -> None:
        """Writes what waits, if that takes no longer than an observer may."""
        self.wait()

    def close(self, seconds: float = CLOSING_SECONDS) -> None:
        self.push(lambda: self._writer.close())
        super().close(seconds)

    def _open(self, first_step: int) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        self._folder.mkdir(exist_ok=True)  # a run whose folder is gone does not get one here
        # two starts in one second have names of their own
        self._writer = EventsWriter(str(self._folder / "events"), f".{os.getpid()}")
        start = SessionLog(status=SessionLog.START)
        self._write(Event(step=first_step, wall_time=time.time(), session_log=start))

    def _write(self, event: Any) -> None:
        if not os.path.exists(path := self._writer._file_name):
            self._open(event.step)  # the rest goes to a new file
            self._lose(f"{path} was deleted while the run writes it")
        self._writer.write_event(event)
        self._writer._py_recordio_writer._writer.flush()  # without waiting for the disk


def _import_tensorboardx() -> None:
    """In the caller's thread: two that import the package at once see half of it. It would import
    torch where that is installed, for seconds, and nothing here needs it."""
    hides_torch = "torch" not in sys.modules
    if hides_torch:
        sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        import tensorboardX.event_file_writer  # noqa: F401
    finally:
        if hides_torch:
            del sys.modules["torch"]


def show(text: str) -> None:
    """Prints a line of the run; where nobody reads it, or it cannot be written, nobody does."""
    try:
        terminal.show(text, flush=True)
    except OSError as error:
        log.warning("standard output is lost: %s. The run goes on", error)
        # whatever is printed later, and what Python flushes at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
