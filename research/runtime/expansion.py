"""How much a compressed file may hold, and a record of any file: a few kilobytes could fill the
memory or the disk.

Text shrinks to a third or a tenth, logs to a fiftieth; what gzip makes of zeros is a thousandth. A
record takes several times its size while it is read, parsed and tokenized.
"""

from __future__ import annotations

import os

# the setting: how many times its size a file may hold
VARIABLE, DEFAULT = "GRAFT_MAX_EXPANSION", 250
# bytes that any file may hold
ALWAYS = 2**30
# the setting: bytes that a record may have, about ten times the longest of books
RECORD_VARIABLE, RECORD_DEFAULT = "GRAFT_MAX_RECORD", 2**26


class ExpansionError(OSError):
    """A file unpacks to too much. No ValueError: that is of a record, which may be left out."""


def max_expansion() -> int:
    """The setting, from the environment.

    Raises:
      ValueError: it is no number.
    """
    return _setting(VARIABLE, DEFAULT)


def max_record_bytes() -> int:
    """The setting, from the environment.

    Raises:
      ValueError: it is no number.
    """
    return _setting(RECORD_VARIABLE, RECORD_DEFAULT)


def _setting(variable: str, default: int) -> int:
    text = os.environ.get(variable) or str(default)
    if not text.isdecimal() or not int(text):
        raise ValueError(f"{variable}={text}: a whole number from 1 on")
    return int(text)


def check_record(size: int, place: str) -> None:
    """Refuses a record that is too long: a line, a row, a document.

    Args:
      size: its bytes, or those that were read of it so far.
      place: file and line, for the error.

    Raises:
      ValueError: it is over the limit.
    """
    if size > max_record_bytes():
        raise ValueError(
            f"{place}: a record of {size:,} bytes or more; the limit is {max_record_bytes():,}, as "
            "in memory it takes several times its size. If it is meant to be so long, set "
            f"{RECORD_VARIABLE} to a larger number"
        )


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
