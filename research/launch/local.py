"""Processes of this machine: one run in all of them, started again until it is finished."""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from research.launch.job import STOPPED, Job, Shell, StudyJob, outcome, should_restart
from research.runtime import children, signals

INTERVAL = 0.1  # seconds between two looks at the processes


def add_flags(parser) -> None:
    parser.add_argument(
        "--processes",
        type=int,
        default=1,
        metavar="N",
        help="processes of the run, which share this machine's devices (default 1)",
    )
    parser.add_argument(
        "--heartbeat-timeout",
        type=float,
        default=children.SILENCE_LIMIT,
        metavar="SECONDS",
        help="a process that gives no sign of life for so long is killed, and the run started "
        f"again (default {children.SILENCE_LIMIT:.0f}, 5 or more; 0: never)",
    )


def check(job: Job, arguments, experiment) -> None:
    if arguments.processes < 1:
        raise ValueError("--processes: one at least")
    limit = arguments.heartbeat_timeout  # a sign is given each second
    if limit and not 5 <= limit < float("inf"):
        raise ValueError("--heartbeat-timeout: 5 seconds or more, or 0 for none")


def start(job: Job, arguments, shell: Shell) -> int:
    """Starts the run, again after it was stopped or killed; the exit status of its last end."""
    flags = ["--distributed"] if arguments.processes > 1 else []
    return _run_to_end(
        job, job.command(sys.executable, *flags), arguments.processes, arguments, shell
    )


def _run_to_end(job: Job, command: list[str], processes: int, arguments, shell: Shell) -> int:
    for attempt in range(job.restarts + 1):
        environments = [{**job.environment, **each} for each in _process_environments(processes)]
        for environment in environments:
            variables = [f"{name}={value}" for name, value in environment.items()]
            shell.echo(*(["env", *variables] if variables else []), *command)
        if shell.dry_run:
            return 0
        statuses, was_signaled = _run_once(command, environments, arguments.heartbeat_timeout)
        # our own end, an error of the run, or its end
        if was_signaled or not should_restart(statuses):
            return outcome(statuses)
        if attempt < job.restarts:
            print(f"launch: it ended with {statuses}; started again", flush=True)
    print(f"launch: it ended with {statuses}, and {job.restarts} restarts are used up", flush=True)
    return STOPPED


def check_study(job: StudyJob, arguments, experiments) -> None:
    check(job, arguments, None)
    if arguments.processes > 1:
        raise ValueError("local: of a study give --shares N in place of --processes")


def start_study(job: StudyJob, arguments, shell: Shell) -> int:
    """Runs the study with a worker for each share, again after it was stopped or killed."""
    command = job.command(sys.executable, "--workers", str(job.shares))
    return _run_to_end(job, command, 1, arguments, shell)


def delete(job: Job, arguments, shell: Shell) -> None:
    raise ValueError("local: processes end with the launcher; there is nothing to delete")


def _run_once(
    command: list[str], environments: list[dict[str, str]], silence_limit: float
) -> tuple[list[int], bool]:
    """One start of all processes: their statuses, and whether a signal came to the launcher.

    A process without a sign of life for `silence_limit` seconds is killed, and so is one that has
    not ended as long after another one failed; 0: none is.
    """
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="graft-launch-")))
        processes: list[subprocess.Popen[bytes]] = []

        def kill() -> None:
            for process in processes:
                process.kill()

        def stop() -> None:
            for process in processes:
                children.ask_to_end(process)

        request = signals.StopRequest(stop)
        stack.callback(kill)
        stack.enter_context(signals.cleanup(kill))  # of a second signal
        stack.enter_context(signals.collect(request))
        watches = []
        for number, environment in enumerate(environments):
            heartbeat = folder / str(number)
            variables = children.child_environment(environment, heartbeat)
            # of sessions of their own, so that Ctrl-C reaches them once, from here
            processes.append(subprocess.Popen(command, env=variables, start_new_session=True))
            watches.append(_Watch(number, processes[-1], children.Heartbeat(heartbeat)))
            if request.received:
                stop()  # it came before this one was there
        while any(process.poll() is None for process in processes):
            time.sleep(INTERVAL)
            failed = any(process.poll() for process in processes)
            for watch in watches:
                watch.look(silence_limit, failed)
        return [process.wait() for process in processes], request.received


@dataclasses.dataclass
class _Watch:
    """Ends a process that hangs.

    Attributes:
      alone: seconds that it runs on since another process failed.
    """

    number: int
    process: subprocess.Popen[bytes]
    heartbeat: children.Heartbeat
    alone: float = 0.0

    def look(self, silence_limit: float, others_failed: bool) -> None:
        """Kills the process if its time is over."""
        silence = self.heartbeat.look()
        if not silence_limit or self.process.poll() is not None:
            return
        self.alone += INTERVAL * others_failed
        why = ""
        if silence > silence_limit:
            why = f"gave no sign of life for {silence:.0f} s"
        elif self.alone > silence_limit:
            why = f"has not ended {silence_limit:.0f} s after another one failed"
        if why:
            print(f"launch: process {self.number} {why}: killed", flush=True)
            self.process.kill()
            self.process.wait()


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
