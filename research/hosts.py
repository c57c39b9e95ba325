"""Several processes as one run: how they join, agree on what they run, and stop at one step."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

# seconds without a sign of life after which a process counts as gone, and the others end too
HEARTBEAT = 20
STOPPED = 75  # exit status of a run that is to be started again: EX_TEMPFAIL of sysexits.h
VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def join() -> bool:
    """Joins the other processes of this run, before JAX makes its first device; whether this is the
    one that speaks.

    Who they are is said by the variables JAX_COORDINATOR_ADDRESS (host:port of process 0),
    JAX_NUM_PROCESSES and JAX_PROCESS_ID, or found out by JAX from TPU pods, GKE, Slurm or Open MPI.

    Raises:
      ValueError: only some of the variables are set, or nothing says who the others are.
    """
    address, *numbers = (os.environ.get(name) for name in VARIABLES)
    given = [name for name in VARIABLES if os.environ.get(name)]
    if given and len(given) < len(VARIABLES):
        missing = [name for name in VARIABLES if name not in given]
        raise ValueError(f"--distributed: {' and '.join(given)} is set, but not {missing}")
    total, index = (int(text) if text and text.isdecimal() else None for text in numbers)
    if given and (total is None or index is None or index >= total):
        raise ValueError(
            f"--distributed: {VARIABLES[2]}={numbers[1]} is none of the numbers from 0 below "
            f"{VARIABLES[1]}={numbers[0]}"
        )
    try:
        jax.distributed.initialize(
            address,
            total,
            index,
            heartbeat_timeout_seconds=HEARTBEAT,
            shutdown_timeout_seconds=3 * HEARTBEAT,
        )
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"--distributed: {error} Set {', '.join(VARIABLES)} for each process, or start them "
            "with tools/launch.py, Slurm or on a TPU pod, where JAX finds them out"
        ) from error
    return jax.process_index() == 0


def check_alike(**facts: str) -> None:
    """Refuses to go on where processes differ in what must be one for the run.

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


@contextlib.contextmanager
def stop_signals() -> Iterator[Stop]:
    """Collects SIGTERM and SIGINT instead of dying of them; a second one kills as ever."""
    stop = Stop()
    before: dict[int, Any] = {}

    def receive(number: int, frame: Any) -> None:
        signal.signal(number, before[number])
        if jax.process_count() == 1:
            stop.received = True
        else:  # JAX waits for this one, and tells the other processes
            os.kill(os.getpid(), signal.SIGTERM)

    mine = [signal.SIGINT] + [signal.SIGTERM] * (jax.process_count() == 1)
    for number in map(int, mine):
        with contextlib.suppress(ValueError):  # not the main thread: signals are not ours
            before[number] = signal.signal(number, receive)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Stop:
    """Whether the run should end."""

    received = False

    def at(self, step: int) -> bool:
        """Whether to stop after this step; the same on all processes, which all ask each step.

        A signal to one process reaches the others: all stop at one step that none has passed.
        """
        if jax.process_count() == 1:
            return self.received
        return bool(multihost_utils.reached_preemption_sync_point(step))


@contextlib.contextmanager
def end_at_once() -> Iterator[None]:
    """An error of one of several processes ends it without waiting for the others, which then
    notice; at a normal end JAX waits for all."""
    try:
        yield
    except BaseException as error:
        given = isinstance(error, SystemExit) and isinstance(error.code, int | None)
        if jax.process_count() == 1 or given:  # a status is all processes'
            raise
        who = f"process {jax.process_index()} of {jax.process_count()}"
        if isinstance(error, SystemExit):
            print(f"{who}: {error.code}", file=sys.stderr, flush=True)
        elif isinstance(error, jax.errors.JaxRuntimeError):
            print(
                f"{who}: error: another process is gone, or cannot be reached "
                f"({str(error).splitlines()[0]}). Start all of them again with the same command: "
                "the run goes on at its last checkpoint.",
                file=sys.stderr,
                flush=True,
            )
            os._exit(STOPPED)
        else:
            traceback.print_exc()
        os._exit(1)
