"""The job that is launched, and the shell that runs the programs that launch it."""

from __future__ import annotations

import dataclasses
import re
import shlex
import shutil
import signal
import subprocess
import textwrap
import time
from collections.abc import Mapping, Sequence

from research.runtime import signals

# Exit statuses of the run's processes (research.runtime.distributed). 0: the run is finished.
# STOPPED: a signal stopped it, or it lost the others. OWN_ERRORS: errors of the run itself, which
# starting it again would repeat: of the program, of its flags, or no such program. Anything else,
# signals above all: something else ended it.
STOPPED = 75
OWN_ERRORS = (1, 2, 126, 127)
PYTHON = ".venv/bin/python"  # of a clone
# by this one JAX ends a process that has lost the others, whatever they died of
_ABORTED = (-signal.SIGABRT, 128 + signal.SIGABRT)


@dataclasses.dataclass(frozen=True)
class Job:
    """A training run, as `graft train` takes it."""

    # its name on a cluster: lower case, digits and hyphens
    name: str
    config: str
    workdir: str
    overrides: tuple[str, ...] = ()
    # chips, such as v5e:4x4, and how many such slices; empty where the target has no TPUs
    topology: str = ""
    slices: int = 1
    # variables of its processes
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    # how often it is started again after it was stopped or preempted
    restarts: int = 10

    def command(self, python: str = "python", *flags: str) -> list[str]:
        """The training program with its arguments."""
        return [
            *(python, "-m", "research.train", "--config", self.config, "--workdir", self.workdir),
            *flags,
            *(f"--config.{override}" for override in self.overrides),
        ]

    def on_cluster(self) -> list[str]:
        """The program of each process on other machines, in the clone's root."""
        return self.command(PYTHON, "--distributed")


@dataclasses.dataclass(frozen=True)
class StudyJob(Job):
    """Trials of a study, as `graft study run` takes them: each process runs what no other has.

    `config` is that of the study; `workdir` has its trials and its ledger.
    """

    # the study's folder, below the clone's root
    study: str = ""
    # folders that the study itself makes, where they are not there
    bases: tuple[str, ...] = ()
    # so many processes begin apart, each with one share; together they run all
    shares: int = 1
    # the share of this one, as `--share` takes it; empty: the target's own variable has its number
    share: str = ""

    def command(self, python: str = "python", *flags: str) -> list[str]:
        """The program with its arguments."""
        return [
            *(python, "-m", "research.cli", "study", "run", self.study, "--folder", self.workdir),
            *(["--share", self.share] if self.share else []),
            *flags,
        ]

    def on_cluster(self) -> list[str]:
        return self.command(PYTHON)

    def parts(self) -> list[StudyJob]:
        """A job of its own for each share."""
        return [
            dataclasses.replace(self, name=f"{self.name}-{n}", share=f"{n}/{self.shares}")
            for n in range(self.shares)
        ]


def should_restart(statuses: Sequence[int]) -> bool:
    """Whether a run whose processes ended with these statuses is to be started again.

    A process that is taken away makes others fail, perhaps with what looks like an error of their
    own; one that fails by itself leaves no other dead by a signal than JAX's.
    """
    was_killed = any((n < 0 or n > 128) and n not in _ABORTED for n in statuses)
    return any(statuses) and (was_killed or not any(n in OWN_ERRORS for n in statuses))


def outcome(statuses: Sequence[int]) -> int:
    """One exit status for all of a run's processes."""
    if should_restart(statuses):
        return STOPPED
    return next((n for n in statuses if n in OWN_ERRORS), 0)


def check_name(name: str) -> str:
    """A name that Kubernetes and Google Cloud take.

    Raises:
      ValueError: it is none.
    """
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", name):
        raise ValueError(
            f"--name {name!r}: lower-case letters, digits and hyphens, a letter first, 40 at most"
        )
    return name


class Shell:
    """Runs other programs, and prints each command before; a dry run prints and runs nothing."""

    INTERVAL = 10.0  # seconds between two questions

    def __init__(self, dry_run: bool):
        self.dry_run = dry_run

    def call(
        self, *command: str, stdin: str = "", echo: bool = True, tries: int = 1, absent: str = ""
    ) -> str:
        """Runs a command, and returns its output.

        Args:
          stdin: its standard input.
          echo: whether to print it; not for what is asked again and again.
          tries: how often it may fail but the last time, with a rest between.
          absent: words with which it says that there is no such thing; then it has printed nothing.

        Raises:
          ValueError: the program is not there, or it failed; with the end of its output.
        """
        if echo or self.dry_run:
            self.echo(*command, stdin=stdin)
        if self.dry_run:
            return ""
        program = _find_program(command[0])
        for tries_left in reversed(range(tries)):
            process = subprocess.run(
                [program, *command[1:]], input=stdin, capture_output=True, text=True
            )
            if not process.returncode:
                break
            end = (process.stderr.strip() or process.stdout.strip())[-2000:]
            if absent and absent in end:
                return ""
            error = f"{shlex.join(command[:6])} ... failed ({process.returncode}): {end}"
            if not tries_left:
                raise ValueError(error)
            print(f"launch: {error}; tried again", flush=True)
            self.rest()
        return process.stdout

    def follow(self, *command: str) -> int:
        """Runs a command whose output goes to the terminal; its exit status."""
        self.echo(*command)
        if self.dry_run:
            return 0
        command = (_find_program(command[0]), *command[1:])
        with subprocess.Popen(command) as process, signals.cleanup(process.terminate):
            return process.wait()

    def rest(self) -> None:
        """Waits before the same question is asked again."""
        if not self.dry_run:
            time.sleep(self.INTERVAL)

    def echo(self, *command: str, stdin: str = "") -> None:
        """Prints a command, and in a dry run its standard input."""
        print(f"$ {shlex.join(command)}", flush=True)
        if stdin and self.dry_run:
            print(textwrap.indent(stdin, "  "), end="", flush=True)


def _find_program(program: str) -> str:
    path = shutil.which(program)
    if path is None:
        raise ValueError(f"{program} is not on PATH: {_INSTALL.get(program, 'install it')}")
    return path


_INSTALL = {
    "gcloud": "install the Google Cloud CLI (cloud.google.com/sdk)",
    "kubectl": "gcloud components install kubectl, or your distribution's package",
    "sbatch": "run this on a login node of the Slurm cluster",
}
