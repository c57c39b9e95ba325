"""A worker process on this machine, as Beam starts it: Beam's own, but silent.

What fails in it reaches the starting process as an error with its traceback.
"""

import logging
import sys

# Else it says so a third time, and at every start what it could do with Google's clients.
logging.disable(logging.ERROR)

from apache_beam.runners.worker import sdk_worker_main  # noqa: E402

if __name__ == "__main__":
    sdk_worker_main.main(sys.argv)
