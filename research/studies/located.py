"""Errors about a study, with the file and the line of what they name."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

from research.config.suggestions import suggestion


@contextlib.contextmanager
def located(file: Path, classes: tuple[type, ...] = ()) -> Iterator[None]:
    """Adds to a ValueError in the block where in the file stands the text that it quotes.

    Args:
      classes: whose arguments are suggested where one has another name.
    """
    try:
        yield
    except TypeError as error:
        hint = _argument_hint(str(error), classes)
        if not hint:
            raise
        raise TypeError(f"{error}{hint}").with_traceback(error.__traceback__) from None
    except ValueError as error:
        line = _line_of(str(error), file)
        if line is None or str(file) in str(error):
            raise
        raise ValueError(f"{file}, line {line}: {error}") from error


def _argument_hint(message: str, classes: tuple[type, ...]) -> str:
    match = re.match(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", message)
    for each in classes:
        if match and each.__name__ == match[1] and dataclasses.is_dataclass(each):
            return suggestion(match[2], [field.name for field in dataclasses.fields(each)])
    return ""


def _line_of(message: str, file: Path) -> int | None:
    """The first line of the file with a text, or a part of one, that the message quotes first."""
    try:
        parsed = ast.parse(file.read_text(encoding="utf-8"))
    except (OSError, SyntaxError):
        return None
    lines: dict[str, int] = {}
    for node in ast.walk(parsed):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            lines.setdefault(node.value, node.lineno)
    for quoted in re.findall(r"'([^']+)'", message):
        for text in (quoted, *quoted.split()):
            if text in lines:
                return lines[text]
    return None
