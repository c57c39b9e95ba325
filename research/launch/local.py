"""Processes of this machine: one run in all of them, started again until it is finished."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from types import FrameType

from research.launch.job import STOPPED, Job, Shell, outcome, should_restart


def add_flags(parser) -> None:
    parser.add_argument(
        "--processes",
        type=int,
        default=1,
        metavar="N",
        help="processes of the run, which share this machine's devices (default 1)",
    )


def check(job: Job, arguments, experiment) -> None:
    if arguments.processes < 1:
        raise ValueError("--processes: one at least")


def start(job: Job, arguments, shell: Shell) -> int:
    """Starts the run, again after it was stopped or killed; the exit status of its last end."""
    flags = ["--distributed"] if arguments.processes > 1 else []
    command = job.command(sys.executable, *flags)
    for attempt in range(job.restarts + 1):
        environments = [
            {**job.environment, **each} for each in _process_environments(arguments.processes)
        ]
        for environment in environments:
            variables = [f"{name}={value}" for name, value in environment.items()]
            shell.echo(*(["env", *variables] if variables else []), *command)
        if shell.dry_run:
            return 0
        statuses, was_signaled = _run_once(command, environments)
        if was_signaled or not should_restart(
            statuses
        ):  # our own end, an error of the run, or its end
            return outcome(statuses)
        if attempt < job.restarts:
            print(f"launch: it ended with {statuses}; started again", flush=True)
    print(f"launch: it ended with {statuses}, and {job.restarts} restarts are used up", flush=True)
    return STOPPED


def delete(job: Job, arguments, shell: Shell) -> None:
    raise ValueError("local: processes end with the launcher; there is nothing to delete")


def _run_once(command: list[str], environments: list[dict[str, str]]) -> tuple[list[int], bool]:
    """One start of all processes: their statuses, and whether a signal came to the launcher."""
    processes = [  # of sessions of their own, so that Ctrl-C reaches them once, from here
        subprocess.Popen(command, env=os.environ | environment, start_new_session=True)
        for environment in environments
    ]
    was_signaled = False

    def pass_on(number: int, frame: FrameType | None) -> None:
        nonlocal was_signaled
        was_signaled = True
        for process in processes:
            process.send_signal(signal.SIGTERM)

    before = {n: signal.signal(n, pass_on) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        statuses = [process.wait() for process in processes]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return statuses, was_signaled


def _process_environments(count: int) -> list[dict[str, str]]:
    """The variables that tell each process which it is."""
    if count == 1:
        return [{}]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [
        {
            "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
            "JAX_NUM_PROCESSES": str(count),
            "JAX_PROCESS_ID": str(index),
        }
        for index in range(count)
    ]
