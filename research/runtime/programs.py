"""Programs of ours that another one runs and waits for."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from typing import Any

from research.runtime import children, signals


def run_program(command: Sequence[str], **settings: Any) -> subprocess.CompletedProcess[Any]:
    """Runs a program of ours to its end, as `subprocess.run` does with these settings.

    It gets SIGTERM when this process gets a signal, which then waits for it, and ends with this
    process whatever kills that one.

    Raises:
      SystemExit: a signal came.
    """
    with subprocess.Popen(command, env=children.child_environment(), **settings) as process:
        request = signals.StopRequest(process.terminate)
        with signals.collect(request):
            output, errors = process.communicate()
    if request.received:
        raise SystemExit(process.returncode if process.returncode > 0 else 143)
    return subprocess.CompletedProcess(command, process.returncode, output, errors)
