"""Programs of ours that others of ours start: they end with their parent, and give signs of life.

A parent that is killed cannot end its children, so each of them looks after its parent: the kernel
does it on Linux, a thread elsewhere. This imports the standard library alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import subprocess

# variables of a child: its parent's id, and the file that it renews every BEAT seconds; of a folder
# the file with its own id as the name
PARENT, HEARTBEAT = "GRAFT_PARENT", "GRAFT_HEARTBEAT"
BEAT = 1.0
SILENCE_LIMIT = 120.0  # seconds without a sign of life after which a child hangs, or is stopped
_PR_SET_PDEATHSIG = 1  # of Linux's prctl


def child_environment(
    variables: Mapping[str, str] | None = None, heartbeat: Path | None = None
) -> dict[str, str]:
    """The variables of a child that ends with this process.

    Args:
      variables: more of them.
      heartbeat: a file that the child renews as long as its Python runs.
    """
    beat = {HEARTBEAT: str(heartbeat)} if heartbeat else {}
    return {**os.environ, **(variables or {}), PARENT: str(os.getpid()), **beat}


def ask_to_end(process: subprocess.Popen[bytes]) -> None:
    """Sends SIGTERM to a child, which hears it at once, also where something has stopped it."""
    process.terminate()
    if hasattr(signal, "SIGCONT"):
        process.send_signal(signal.SIGCONT)


def follow_parent() -> None:
    """Ties this process to the one that started it with `child_environment`, if one did."""
    parent, heartbeat = os.environ.pop(PARENT, None), os.environ.pop(HEARTBEAT, None)
    if parent is None or not parent.isdecimal():
        return
    if sys.platform == "linux":  # at once, and also where this process hangs
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    arguments = (int(parent), heartbeat)
    threading.Thread(target=_follow, args=arguments, name="parent", daemon=True).start()


def _follow(parent: int, heartbeat: str | None) -> None:
    if heartbeat and os.path.isdir(heartbeat):
        heartbeat = os.path.join(heartbeat, str(os.getpid()))
    while os.getppid() == parent:
        if heartbeat:
            with contextlib.suppress(OSError):  # a full disk is no reason to end
                Path(heartbeat).touch()
        time.sleep(BEAT)
    os.kill(os.getpid(), signal.SIGKILL)


class Heartbeat:
    """Looks whether a child gives signs of life, by the file that it renews.

    Attributes:
      silence: seconds since the last sign, of those in which this process looked; 0 before the
        first sign.
    """

    LOOK = 2.0  # seconds that one look counts for at most: this process, too, may be stopped

    def __init__(self, file: Path):
        self.silence = 0.0
        self._file = file
        self._last: int | None = None
        self._last_look = time.monotonic()

    def look(self) -> float:
        """Looks at the file, and returns `silence`; for calls a second or less apart."""
        now = time.monotonic()
        seconds, self._last_look = min(now - self._last_look, self.LOOK), now
        try:
            # its change counts, not its time: clocks are set
            current = self._file.stat().st_mtime_ns
        except OSError:
            current = None
        is_new = current is None or current != self._last
        self._last = current
        self.silence = 0.0 if is_new else self.silence + seconds
        return self.silence
