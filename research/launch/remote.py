#!/usr/bin/env python3
"""On a machine of a TPU slice: starts the run so that it outlives the connection, and follows it.

    research/launch/remote.py start FOLDER COMMAND...
    research/launch/remote.py follow|follow-on FOLDER
    research/launch/remote.py status FOLDER

In FOLDER: log, the run's output; pid; status, its exit status once it has ended. `follow` prints
the log from the start, `follow-on` from near its end, and ends when the run does; `status` says how
it ended (the number of a signal with a minus), or that it runs.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

INTERVAL = 1.0  # seconds
STOPPED = 75  # research/launch/job.py, which is not imported: this runs under any Python 3


def start(folder: Path, command: list[str]) -> None:
    """Starts the command in a session of its own; one that still runs there is left alone."""
    if _is_running(folder):
        return
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "status").unlink(missing_ok=True)
    (folder / "log").unlink(missing_ok=True)  # of a link the link alone
    with (folder / "log").open("wb") as log:
        child = subprocess.Popen(
            [sys.executable, __file__, "watch", str(folder), *command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    (folder / "pid").write_text(str(child.pid))


def watch(folder: Path, command: list[str]) -> None:
    """Runs the command, and keeps its status."""
    status = subprocess.run(command, check=False).returncode
    partial = folder / "status.partial"
    partial.write_text(str(status))
    partial.replace(folder / "status")


def follow(folder: Path, skip: bool = False) -> None:
    """Prints the log until the run has ended."""
    with (folder / "log").open("rb") as log:
        if skip:
            log.seek(max(0, (folder / "log").stat().st_size - 4000))
        while True:
            has_ended = (folder / "status").exists() or not _is_running(folder)
            while block := log.read(2**16):
                sys.stdout.buffer.write(block)
            sys.stdout.flush()
            if has_ended:
                return
            time.sleep(INTERVAL)


def status(folder: Path) -> None:
    """Prints how the run ended. One that vanished without a word, as in a reboot, was stopped."""
    if (folder / "status").exists():
        print(f"graft-status {(folder / 'status').read_text()}")
    elif (folder / "pid").exists():
        print(f"graft-status {'running' if _is_running(folder) else STOPPED}")
    else:
        print("graft-status none")


def _is_running(folder: Path) -> bool:
    try:
        number = int((folder / "pid").read_text())
        os.kill(number, 0)
    except (OSError, ValueError):
        return False
    # a process that nobody waited for keeps its number
    state = Path(f"/proc/{number}/stat")
    return not state.exists() or state.read_text().rpartition(")")[2].split()[0] != "Z"


if __name__ == "__main__":
    verb, where, *rest = sys.argv[1:]
    if verb in ("start", "watch"):
        {"start": start, "watch": watch}[verb](Path(where), rest)
    elif verb == "status":
        status(Path(where))
    else:
        follow(Path(where), skip=verb == "follow-on")
