"""A worker process on this machine, as Beam starts it: Beam's own, but silent.

What fails in it reaches the starting process as an error with its traceback.
"""

import contextlib
import logging
import os
import signal
import sys

from research.runtime import children

# Ctrl-C reaches every process of a terminal; the starting one decides, and this one ends with it.
signal.signal(signal.SIGINT, signal.SIG_IGN)
children.follow_parent()
# Else it says so three times, and at every start what it could do with Google's clients.
logging.disable(logging.ERROR)

from apache_beam.runners.worker import sdk_worker_main  # noqa: E402


def main() -> None:
    """Serves until the starting process has no more work."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        sdk_worker_main.main(sys.argv)


if __name__ == "__main__":
    main()
