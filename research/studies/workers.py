"""Several processes that run one study side by side on this machine, each on its own cores.

A step of a small model does not fill many cores; two runs on half of them each do. Nothing here
makes a device of JAX: cores are shared out before it starts its threads.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from research.runtime import children, memory, signals, storage, terminal
from research.runtime.programs import run_program
from research.studies.ledger import Ledger

LOGS = "workers"
AUTO = 0  # `--workers auto`: as many processes as the machine holds
# of the memory that is free: what others may still take meanwhile is left
_MEMORY_SHARE = 0.9


def fitting_count(command: Sequence[str], folder: str | Path) -> int:
    """How many processes this machine holds, by its cores and the memory that trials took.

    Where the ledger has none that ran on a CPU, the first trial runs alone to be measured. On an
    accelerator it is one, which has all its memory.
    """
    peaks = _peaks(folder)
    if not peaks:
        print("--workers auto: the first trial runs alone, to be measured", flush=True)
        run_program([sys.executable, "-m", "research.cli", *command, "--trials", "1"])
        peaks = _peaks(folder)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    free = memory.available_on_host()
    if not peaks or free is None:
        print("--workers auto: 1, as what a trial takes is not known", flush=True)
        return 1
    on_accelerator = any(device != "cpu" for device, _ in peaks)
    most = max(size for _, size in peaks)
    count = 1 if on_accelerator else max(1, min(cores, int(_MEMORY_SHARE * free / most)))
    print(
        f"--workers auto: {count}, of {cores} cores; a trial takes {most / memory.GIB:.1f} GiB, "
        f"and {free / memory.GIB:.1f} are free",
        flush=True,
    )
    return count


def _peaks(folder: str | Path) -> list[tuple[str, int]]:
    """(device, the most memory of the process) of every trial of the folder."""
    rows = Ledger(folder).read().values()
    return [(row["device"], row["process_bytes"]) for row in rows if row.get("process_bytes")]


@contextlib.contextmanager
def side_by_side(command: Sequence[str], count: int, folder: str | Path) -> Iterator[None]:
    """Runs the block beside `count` - 1 other processes, which run `graft COMMAND`.

    `AUTO` takes as many as cores and memory hold. They end by themselves when the study is over,
    and with this process whatever ends it; one that gives no sign of life is killed, and its trial
    goes on in another. What they print goes to `workers/N.log` in the folder; of one in a bucket,
    to a folder that is named.

    Raises:
      ValueError: more processes than cores, or a system that cannot share these out.
    """
    if count == AUTO:
        count = fitting_count(command, folder)
    if count == 1:
        yield
        return
    if not hasattr(os, "sched_setaffinity"):
        raise ValueError("--workers: this system does not share out cores; run the command twice")
    cores = sorted(os.sched_getaffinity(0))
    if not 1 <= count <= len(cores):
        raise ValueError(f"--workers is a number from 1 to {len(cores)}, the cores of this machine")
    if storage.is_remote(folder):
        logs = Path(tempfile.mkdtemp(prefix="graft-workers-"))
        print(f"what the other processes print: {logs}", flush=True)
    else:
        logs = Path(folder) / LOGS
        logs.mkdir(parents=True, exist_ok=True)
    processes: list[subprocess.Popen[bytes]] = []
    stopping: list[subprocess.Popen[bytes]] = []

    def stop() -> None:
        """Once each: a second signal would end them before their step is saved."""
        for process in processes:
            if process not in stopping and process.poll() is None:
                stopping.append(process)
                children.ask_to_end(process)

    def end() -> None:
        stop()
        for process in processes:
            process.wait()

    with contextlib.ExitStack() as stack:
        beats = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="graft-study-")))
        stack.callback(os.sched_setaffinity, 0, cores)
        stack.enter_context(_killing_silent(processes, beats))
        stack.callback(end)
        for number in range(1, count):
            os.sched_setaffinity(0, cores[number::count])  # a child begins with its parent's
            with (logs / f"{number}.log").open("ab") as log:
                processes.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "research.cli", *command],
                        env=children.child_environment(heartbeat=beats / str(number)),
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                    )
                )
        os.sched_setaffinity(0, cores[0::count])
        with signals.listen(stop):  # at once: they save while this one does
            yield
        for process in processes:
            process.wait()


@contextlib.contextmanager
def _killing_silent(processes: Sequence[subprocess.Popen[bytes]], beats: Path) -> Iterator[None]:
    """Kills processes that give no sign of life inside the block: they would keep their trials.

    Args:
      processes: those that run by now; the number of each, from 1, is its file's name in `beats`.
    """
    heartbeats: dict[int, children.Heartbeat] = {}
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(children.BEAT):
            for number, process in enumerate(list(processes), start=1):
                if number not in heartbeats:
                    heartbeats[number] = children.Heartbeat(beats / str(number))
                silence = heartbeats[number].look()
                if silence > children.SILENCE_LIMIT and process.poll() is None:
                    process.kill()
                    line = (
                        f"worker {number} (process {process.pid}) gave no sign of life for "
                        f"{silence:.0f} s: killed; its trial goes on in another"
                    )
                    # standard output is a trial's log meanwhile
                    terminal.show(line, file=sys.__stderr__, flush=True)

    thread = threading.Thread(target=watch, name="workers", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
