"""Several processes as one run: how they join, agree on what they run, and stop at one step."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from typing import NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from research.runtime import failure_notice, lost_process, signals, terminal

# seconds without a sign of life after which a process counts as gone, and the others end too
HEARTBEAT_SECONDS = 20
EXIT_RESTART = 75  # exit status of a run that is to be started again: EX_TEMPFAIL of sysexits.h
# status codes of JAX's own errors that stand for a process that does not answer
UNREACHABLE_CODES = ("UNAVAILABLE", "DEADLINE_EXCEEDED")
# what the others' collectives, barriers and coordination say then, under any other code and type
PEER_LOST = re.compile(
    r"\bgloo\b|coordination ?service|barrier (failed|timed out)|heartbeat timeout"
    r"|remote process exited|(connection closed|connection reset|socket closed) by peer",
    re.IGNORECASE,
)
VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")

# an error in the main thread and another process's may come at once: the first ends the process
_ending = threading.Lock()
_watch = lost_process.Watch()


def initialize() -> bool:
    """Joins the other processes of this run, before JAX makes its first device.

    Who they are is in the variables JAX_COORDINATOR_ADDRESS (host:port of process 0),
    JAX_NUM_PROCESSES and JAX_PROCESS_ID, or JAX asks the TPU pod, GKE, Slurm or Open MPI.

    Returns:
      Whether this is the main process: the one that prints and writes.

    Raises:
      ValueError: only some of the variables are set, or nothing says who the others are.
    """
    address, *numbers = (os.environ.get(name) for name in VARIABLES)
    set_names = [name for name in VARIABLES if os.environ.get(name)]
    if set_names and len(set_names) < len(VARIABLES):
        missing = [name for name in VARIABLES if name not in set_names]
        raise ValueError(f"--distributed: {' and '.join(set_names)} is set, but not {missing}")
    total, index = (int(text) if text and text.isdecimal() else None for text in numbers)
    if set_names and (total is None or index is None or index >= total):
        raise ValueError(
            f"--distributed: {VARIABLES[2]}={numbers[1]} is none of the numbers from 0 below "
            f"{VARIABLES[1]}={numbers[0]}"
        )
    try:
        jax.distributed.initialize(
            address,
            total,
            index,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=3 * HEARTBEAT_SECONDS,
        )
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"--distributed: {error} Set {', '.join(VARIABLES)} for each process, or start them "
            "with graft launch, Slurm or on a TPU pod, where JAX finds them out"
        ) from error
    is_main_process = jax.process_index() == 0
    failure_notice.listen(_follow, _watch.look)
    lost_process.answer_abort(_watch, _end_without)
    return is_main_process


def check_equal_across_processes(**facts: str) -> None:
    """Compares what all processes of a run must have in common.

    Raises:
      ValueError: naming the fact and the processes that differ from process 0.
    """
    if jax.process_count() == 1:
        return
    digests = [hashlib.sha256(text.encode()).digest()[:8] for text in facts.values()]
    mine = np.frombuffer(b"".join(digests), np.uint32).reshape(len(facts), 2)
    everyone = np.asarray(multihost_utils.process_allgather(mine))  # [processes, facts, 2]
    for number, (name, text) in enumerate(facts.items()):
        same = (everyone[:, number] == everyone[0, number]).all(axis=-1)
        if not same.all():
            others = ", ".join(map(str, np.flatnonzero(~same)))
            raise ValueError(
                f"{name} of process {others} is not that of process 0 "
                f"(of process {jax.process_index()}: {text[:200]})"
            )


def share_numbers(numbers: Mapping[str, float]) -> dict[str, float]:
    """The main process's numbers, in every process: what follows from them is then the same.

    Args:
      numbers: of the same names in all.
    """
    if jax.process_count() == 1:
        return dict(numbers)
    bits = np.asarray([*numbers.values()], np.float64).view(np.uint32)
    values = np.asarray(multihost_utils.broadcast_one_to_all(bits)).view(np.float64)
    return dict(zip(numbers, values.tolist(), strict=True))


@contextlib.contextmanager
def catch_stop_signals() -> Iterator[StopRequest]:
    """Collects SIGTERM and SIGINT instead of dying of them; a second one ends the program."""
    request, numbers = StopRequest(), list(signals.SIGNALS)
    if jax.process_count() > 1:  # JAX waits for SIGTERM, and tells the other processes
        request = StopRequest(lambda: os.kill(os.getpid(), signal.SIGTERM))
        numbers = [signal.SIGINT]
    with signals.collect(request, numbers):
        yield request


class StopRequest(signals.StopRequest):
    """Whether the run should end."""

    def should_stop(self, step: int) -> bool:
        """Whether to stop after this step; the same on all processes, which all ask each step.

        A signal to one process reaches the others: all stop at one step that none has passed.
        """
        if jax.process_count() == 1:
            return self.received
        return bool(multihost_utils.reached_preemption_sync_point(step))


@contextlib.contextmanager
def abort_on_error() -> Iterator[None]:
    """Ends all processes of a run at the first error of one, with its message.

    The exit status says whether to start the run again: EXIT_RESTART when another process is gone,
    1 when one had an error of its own. JAX itself aborts a process that hears nothing from the
    others for HEARTBEAT_SECONDS: `lost_process`. At a normal end JAX waits for all.
    """
    try:
        yield
        failure_notice.stop_listening()
        _watch.leave()
    except BaseException as error:
        is_status = isinstance(error, SystemExit) and isinstance(error.code, int | None)
        if not jax.distributed.is_initialized() or is_status:  # a status is all processes'
            failure_notice.stop_listening()
            raise
        if message := _peer_lost_message(error):
            if notice := failure_notice.find_notice():
                _follow(*notice)
            _end(_lost_message(_watch.silent, f" ({message})"), EXIT_RESTART)
        if not isinstance(error, SystemExit):
            terminal.show(traceback.format_exc(), end="", file=sys.stderr)
        _end(str(error.code if isinstance(error, SystemExit) else repr(error)), 1)


def end_at_once(message: str, status: int = 1) -> NoReturn:
    """Ends this process without waiting for any of its threads, and the others of its run with it.

    The message is the last line of each.
    """
    if not jax.distributed.is_initialized():
        terminal.show(message, file=sys.stderr, flush=True)
        os._exit(status)
    _end(message, status)


def _lost_message(missing: tuple[int, ...], why: str = "") -> str:
    return (
        f"error: {lost_process.describe(missing)}{why}. Start all of them again with the same "
        "command: the run goes on at its last checkpoint."
    )


def _end_without(missing: tuple[int, ...]) -> None:
    """Ends this process in JAX's place: no lock is waited for, as JAX holds its own."""
    message = f"{_process_name()}: {_lost_message(missing)}\n"
    os.write(2, message.encode(errors="replace"))
    os._exit(EXIT_RESTART)


def _follow(message: str, status: int) -> None:
    """Ends this process because of what another one told."""
    _end(message, status, is_own=False)


def _end(message: str, status: int, is_own: bool = True) -> NoReturn:
    """Ends this process at once, and the others with it."""
    with _ending:
        terminal.show(f"{_process_name()}: {message}", file=sys.stderr, flush=True)
        _print_no_more()
        if is_own:
            failure_notice.tell(message, status)
        failure_notice.leave()
        os._exit(status)


def _print_no_more() -> None:
    """The message stays the last line: threads of C++ still tell of their connections."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(nowhere, descriptor)


def _peer_lost_message(error: BaseException | None) -> str:
    """The line of an error, or of its causes, that tells that another process is gone, or ""."""
    causes: list[BaseException] = []
    while error is not None and error not in causes:
        lines = str(error).splitlines() or [""]
        code = lines[0].partition(":")[0]
        if isinstance(error, jax.errors.JaxRuntimeError) and code in UNREACHABLE_CODES:
            return lines[0]
        if message := next(filter(PEER_LOST.search, lines), ""):
            return message
        causes.append(error)
        error = error.__cause__ or error.__context__
    return ""


def _process_name() -> str:
    if place := failure_notice.place():
        return "process {} of {}".format(*place)
    return f"process {os.environ.get(VARIABLES[2], 'of this host')}"  # it never joined the others
