"""Several processes that run one study side by side on this machine, each on its own cores.

A step of a small model does not fill many cores; two runs on half of them each do. This imports no
JAX: cores are shared out before it starts its threads.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from research.runtime import children, storage

LOGS = "workers"


@contextlib.contextmanager
def side_by_side(command: Sequence[str], count: int, folder: str | Path) -> Iterator[None]:
    """Runs the block beside `count` - 1 other processes, which run `graft COMMAND`.

    They end by themselves when the study is over, and with this process whatever ends it. What they
    print goes to `workers/N.log` in the folder; of one in a bucket, to a folder that is named.

    Raises:
      ValueError: more processes than cores, or a system that cannot share these out.
    """
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
    try:
        for number in range(1, count):
            os.sched_setaffinity(0, cores[number::count])  # a child begins with its parent's
            with (logs / f"{number}.log").open("ab") as log:
                processes.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "research.cli", *command],
                        env=children.child_environment(),
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                    )
                )
        os.sched_setaffinity(0, cores[0::count])
        yield
        for process in processes:
            process.wait()
    finally:
        os.sched_setaffinity(0, cores)
        for process in processes:
            if process.poll() is None:
                process.terminate()
                process.wait()
