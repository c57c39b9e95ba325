"""How much a compressed file may hold: one of a few kilobytes could fill the memory or the disk.

Text shrinks to a third or a tenth, logs to a fiftieth; what gzip makes of zeros is a thousandth.
"""

from __future__ import annotations

import os

# the setting: how many times its size a file may hold
VARIABLE, DEFAULT = "GRAFT_MAX_EXPANSION", 250
# bytes that any file may hold
ALWAYS = 2**30


class ExpansionError(OSError):
    """A file unpacks to too much. No ValueError: that is of a record, which may be left out."""


def max_expansion() -> int:
    """The setting, from the environment.

    Raises:
      ValueError: it is no number.
    """
    text = os.environ.get(VARIABLE) or str(DEFAULT)
    if not text.isdecimal() or not int(text):
        raise ValueError(f"{VARIABLE}={text}: a whole number from 1 on")
    return int(text)


def expansion_limit(compressed_bytes: int) -> int:
    """Bytes that so many compressed ones may hold."""
    return max(ALWAYS, compressed_bytes * max_expansion())


def check_expansion(size: int, compressed_bytes: int, name: str) -> None:
    """Refuses what holds too much.

    Args:
      size: bytes that it holds, or that were read of it so far.
      name: of the file, for the error.

    Raises:
      ExpansionError: it is over the limit.
    """
    if size > expansion_limit(compressed_bytes):
        raise ExpansionError(
            f"{name}: {compressed_bytes:,} bytes of it unpack to over {size:,}, as those of an "
            f"archive bomb; the limit is {ALWAYS:,} bytes or {max_expansion()} times its size. If "
            f"you trust it, set {VARIABLE} to a larger number"
        )
