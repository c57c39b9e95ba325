"""Programs against their tests, in a sandbox: no network, no files but its own, limits of all."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import platform
import secrets
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from research.evaluation.sandbox import confine, harness

# imported too, so that what depends on the code depends on them
CONFINE, HARNESS = Path(confine.__file__), Path(harness.__file__)
# what is read of a program's results: more is none of ours
MAX_RESULT_BYTES = 2**20


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a program may use."""

    # seconds of CPU time of a process, and of the wall clock in all
    cpu_seconds: int = 5
    seconds: float = 15.0
    # memory of a process, and what may be written, in MiB
    memory_mib: int = 512
    files_mib: int = 16
    # processes and threads
    processes: int = 4


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of a program."""

    # `passed` where every test did, `failed` where assertions of tests did not hold, `error` where
    # anything else went wrong, an early end too
    kind: Literal["passed", "failed", "error", "timeout"]
    # how many tests passed
    tests_passed: int
    # what went wrong first, in a line
    message: str = ""


class SandboxError(ValueError):
    """This machine makes no sandbox."""


def run(program: str, tests: Sequence[str], limits: Limits) -> Outcome:
    """Runs a program, and each test after it in its namespace.

    The program sees Python's standard library and an empty folder, and nobody sees what it prints.

    Args:
      program: its text, which is Python's.
      tests: texts, each of which raises where it fails.

    Raises:
      SandboxError: this machine makes no sandbox; says what to do.
    """
    key = secrets.token_hex(16)
    task = json.dumps({"key": key, "program": program, "tests": [*tests]})
    output, errors, status = _run_confined(task.encode(), limits)
    if errors:
        raise SandboxError(_help(errors))
    results: dict[int, str] = {}
    for line in output.splitlines():
        its_key, _, rest = line.partition(" ")
        number, _, result = rest.partition(" ")
        # a program that forks reports twice: the worse counts
        if its_key == key and results.get(int(number), "passed") == "passed":
            results[int(number)] = result
    passed = sum(result == "passed" for result in results.values())
    wrong = [results[n] for n in sorted(results) if results[n] != "passed"]
    if wrong:
        kinds = [result.partition(" ")[0] for result in wrong]
        kind: Literal["failed", "error"] = "error" if "error" in kinds else "failed"
        return Outcome(kind, passed, wrong[0].partition(" ")[2])
    if len(results) == len(tests):
        return Outcome("passed", passed)
    if status is None or status == 128 + signal.SIGXCPU:
        return Outcome("timeout", passed, "it did not end in time")
    return Outcome("error", passed, f"it ended before its tests, with status {status}")


@functools.cache
def check() -> None:
    """Raises SandboxError, with what to do, where this machine makes no sandbox."""
    outcome = run("", ["assert True"], Limits())
    if outcome.kind != "passed":
        raise SandboxError(_help(outcome.message))


def _run_confined(task: bytes, limits: Limits) -> tuple[str, str, int | None]:
    """What a program says of its tests, what went wrong before it, and its status.

    The status is None where it was stopped at its wall clock.
    """
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"):
        raise SandboxError(_help(f"this is {platform.system()} on {platform.machine()}"))
    mib = 2**20
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    python = Path(sys.base_prefix) / "bin" / f"python{version}"
    if not python.exists():
        raise SandboxError(_help(f"{python} is not there"))
    settings = {
        "prefix": sys.base_prefix,
        "command": [
            *(str(python), "-I", "-S", "-B", "-c"),
            HARNESS.read_text(encoding="utf-8"),
        ],
        "writable_bytes": limits.files_mib * mib,
        "limits": {
            "CPU": limits.cpu_seconds,
            "AS": limits.memory_mib * mib,
            "FSIZE": limits.files_mib * mib,
            "NPROC": limits.processes,
            "NOFILE": 64,
            "CORE": 0,
        },
    }
    command = [str(python), "-I", "-S", str(CONFINE), json.dumps(settings)]
    # in memory, within the limit of a file's size: a program may write there without end
    with open(os.memfd_create("results"), "rb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.PIPE,
            env={},
            cwd="/",
            start_new_session=True,
        )
        try:
            errors = process.communicate(task, timeout=limits.seconds)[1]
            status: int | None = process.returncode
        except subprocess.TimeoutExpired:
            errors, status = b"", None
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
        output.seek(0)
        text = output.read(MAX_RESULT_BYTES).decode(errors="replace")
    return text, errors.decode(errors="replace").strip(), status


def _help(reason: str) -> str:
    return (
        f"programs of a model run in a sandbox alone, and this machine makes none ({reason}). It "
        "needs Linux 5.12 or newer, on x86_64 or aarch64, that lets a user make namespaces: as "
        "root, `sysctl kernel.apparmor_restrict_unprivileged_userns=0` on Ubuntu; in Docker, "
        "--security-opt seccomp=unconfined --security-opt apparmor=unconfined --security-opt "
        "systempaths=unconfined. Or leave the scorer `code` out"
    )
