"""Text of records, files and folders on a terminal, which obeys what it is sent.

An escape sequence in a record could clear the screen, rename the window, write to the clipboard or
paste a command; a bidirectional control shows text in another order than it has. Whatever is shown
of data goes through `printable`.
"""

from __future__ import annotations

import logging
import re
import sys
import traceback
from types import TracebackType
from typing import IO

# C0 but the tab and the line's end, DEL, C1; controls of the direction of writing (Unicode's
# Bidi_Control); separators of lines and paragraphs; halves of surrogate pairs, which no encoding
# takes
_CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
_CONTROLS_AND_LINES = re.compile(rf"{_CONTROLS.pattern}|[\t\n]")


def printable(text: str, lines: bool = True) -> str:
    """The text with its control characters spelt out, as `\\x1b`.

    Args:
      lines: whether tabs and ends of lines stay.
    """
    pattern = _CONTROLS if lines else _CONTROLS_AND_LINES
    return pattern.sub(_spell, text.replace("\r\n", "\n"))


def _spell(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode()


def show(text: str = "", end: str = "\n", file: IO[str] | None = None, flush: bool = False) -> None:
    """Prints text in which there may be some of a record, a file or a folder."""
    print(printable(text), end=end, file=file, flush=flush)


def show_answer(text: str, end: str = "\n") -> None:
    """Prints what a model answers: on a terminal as `show`, into a file or a pipe as it is."""
    is_terminal = sys.stdout.isatty()
    print(printable(text) if is_terminal else _encodable(text), end=end, flush=True)


def _encodable(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")


class _PrintableRecord(logging.LogRecord):
    def getMessage(self) -> str:  # noqa: N802  the name that logging calls
        return printable(super().getMessage())


def clean_log_lines() -> None:
    """Lets every line that this program logs, and every traceback, go through `printable`."""
    logging.setLogRecordFactory(_PrintableRecord)
    sys.excepthook = _show_traceback


def _show_traceback(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    if sys.stderr is not None:
        show("".join(traceback.format_exception(kind, error, trace)), end="", file=sys.stderr)
