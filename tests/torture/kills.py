"""Signals at random moments: a run that got them ends as one that got none, to the same bits."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.torture.cases import Case, Family, PromiseError, one_line
from tests.torture.worlds import ROOT, World

SECONDS = 300  # for one start: the program hangs
FIRST = 0.3  # seconds of Python's own start, where the system does not say when it is over
STARTS = 3  # that get a signal, before one that gets none
STATUSES = {
    signal.SIGKILL: (-signal.SIGKILL,),
    signal.SIGINT: (130, 75, 0),
    signal.SIGTERM: (143, 75, 0),
}
TIMES = ("seconds", "step_seconds")


def start(command: list[str], world: World, limit: int | None = None) -> subprocess.Popen[str]:
    """A program, in a session of its own; `limit`: the most bytes of a file that it writes."""
    program = "import os, resource, signal, sys\nsignal.signal(signal.SIGINT, signal.SIG_DFL)\n"
    if limit is not None:
        program += f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, -1))\n"
    program += "os.execv(sys.argv[1], sys.argv[1:])"
    return subprocess.Popen(
        [sys.executable, "-c", program, *command],
        cwd=ROOT,
        env=world.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Status, output and errors; raises PromiseError where it hangs."""
    try:
        output, errors = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        raise PromiseError(f"hangs for {SECONDS} s: {process.communicate()[1][-2000:]}") from None
    return process.returncode, output, errors


def content(workdir: Path) -> dict[str, str]:
    """What identifies a run: its last checkpoint's and model's arrays, and its metrics."""
    parts = {}
    for name in ("checkpoints", "model"):
        steps = [path for path in (workdir / name).iterdir() if path.name.isdecimal()]
        newest = max(steps, key=lambda path: int(path.name))
        parts[name] = newest.name + (newest / "files" / "arrays.json").read_text()
    parts["metrics"] = (workdir / "metrics.jsonl").read_text()
    return {name: hashlib.sha256(text.encode()).hexdigest() for name, text in parts.items()}


def check_whole(workdir: Path, world: World) -> None:
    """Raises PromiseError where a run differs from the one that nothing happened to."""
    ours, expected = content(workdir), content(world.whole)
    if different := [name for name in expected if ours[name] != expected[name]]:
        raise PromiseError(
            f"{', '.join(different)} of {workdir} differ from those of {world.whole}"
        )


def families(world: World) -> list[Family]:
    def signals(case: Case) -> str:
        return _interrupt_training(case, world)

    def commands(case: Case) -> str:
        return _interrupt_command(case, world)

    return [
        Family("signals", "graft train: killed and told to stop, then the same bits", signals, 2),
        Family("commands", "generate, convert: one line, and all of the output or none", commands),
    ]


def _interrupt_training(case: Case, world: World) -> str:
    choice, workdir, ends = case.random, case.folder / "run", []
    for _ in range(choice.randint(1, STARTS)):
        process = start(world.train(workdir), world)
        number = choice.choice(sorted(STATUSES))
        moment, twice = 8 * choice.random() ** 1.5, choice.random() < 0.2
        wait_start(process)
        if _wait(process, moment):
            process.send_signal(number)
            if twice and not _wait_end(process, 0.6):
                process.send_signal(number)
        status, output, errors = finish(process)
        ends.append(f"{signal.Signals(number).name} at {moment:.2f} s: {status}")
        (case.folder / "what.txt").write_text("\n".join([*ends, output, errors]))
        _check_end(number, status, output, errors, workdir)
        if status == 0:
            break
    status, output, errors = finish(start(world.train(workdir), world))
    if status:
        raise PromiseError(f"after {ends} the same command ended with {status}: {errors[-2000:]}")
    check_whole(workdir, world)
    return "the same bits"


def wait_start(process: subprocess.Popen[str]) -> None:
    """Waits until a program hears signals: before, the system or Python itself ends it.

    On Linux it is the moment from which it catches SIGTERM, however busy the machine is.
    """
    status = Path(f"/proc/{process.pid}/status")
    if not status.exists():
        _wait_end(process, FIRST)
        return
    deadline = time.monotonic() + SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        caught = next((x for x in status.read_text().splitlines() if x.startswith("SigCgt:")), "")
        if int(caught.partition(":")[2] or "0", 16) >> (signal.SIGTERM - 1) & 1:
            return
        time.sleep(0.001)


def _wait(process: subprocess.Popen[str], seconds: float) -> bool:
    """Whether it still runs after a while."""
    return not _wait_end(process, seconds)


def _wait_end(process: subprocess.Popen[str], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    return process.poll() is not None


def _check_end(number: int, status: int, output: str, errors: str, workdir: Path) -> None:
    """Raises PromiseError where a start's status or its line is not what its folder says."""
    if status not in (0, *STATUSES[signal.Signals(number)]):
        raise PromiseError(f"status {status} after {signal.Signals(number).name}: {errors[-2000:]}")
    if "Traceback" in errors:
        raise PromiseError(errors[-3000:])
    steps = [int(p.name) for p in (workdir / "checkpoints").glob("[0-9]*") if p.name.isdecimal()]
    if status in (130, 143):
        line = one_line(errors)
        if "is saved in" in line and "no step" not in line:
            saved_step = int(line.partition("; step ")[2].partition(" is saved")[0])
            if saved_step not in steps:
                raise PromiseError(f"said {line!r}, and the folder has steps {sorted(steps)}")
    if status == 75 and f"at step {max(steps, default=-1)}, saved" not in output:
        raise PromiseError(f"said {output[-300:]!r}, and the folder has steps {sorted(steps)}")


def _interrupt_command(case: Case, world: World) -> str:
    choice, out = case.random, case.folder / "out"
    base, model = str(world.folder / "base"), world.folder / "transformers"
    lines = {
        "generate": ["generate", "--run", base, "--prompt", "red", "--tokens", "99"],
        "export": ["convert", "export", "--from", base, "--out", str(out)],
        "gguf": ["convert", "export", "--from", base, "--format", "gguf", "--out", f"{out}.gguf"],
        "import": ["convert", "import", "--from", str(model), "--out", str(out)],
    }
    name = choice.choice(sorted(lines))
    number = choice.choice([signal.SIGINT, signal.SIGTERM])
    command = [sys.executable, "-m", "research.cli", *lines[name]]
    process = start(command, world)
    moment = 5 * choice.random()
    wait_start(process)
    if _wait(process, moment):
        process.send_signal(number)
    status, output, errors = finish(process)
    what = f"{name}: {signal.Signals(number).name} at {moment:.2f} s: {status}\n{errors}"
    (case.folder / "what.txt").write_text(what)
    if status == 0:
        return "was done before"
    if status != 128 + number:
        raise PromiseError(what[-2000:])
    one_line(errors)
    left = sorted(path.name for path in case.folder.rglob("*") if path.name != "what.txt")
    if any("partial" in path for path in left):
        raise PromiseError(f"{what}: left {left}")
    if name != "generate":
        shutil.rmtree(out, ignore_errors=True)
        Path(f"{out}.gguf").unlink(missing_ok=True)
    return "one line"


def metrics_steps(workdir: Path) -> list[int]:
    """The steps in a run's metrics."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]
