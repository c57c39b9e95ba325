"""Functions in files of a user's own, which settings name as FILE.py:FUNCTION."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from research.config.user_code import errors_with_line, load_file


def call_function(name: str, setting: str, *arguments: Any) -> Any:
    """What the function gives.

    Args:
      setting: which names it, for errors.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: there is no such function, or it fails; names the line.
    """
    function = load_function(name, setting)
    with errors_with_line(split_function(name, setting)[0]):
        return function(*arguments)


def load_function(name: str, setting: str) -> Callable[..., Any]:
    """The function itself.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: there is no such function, or its file fails; names the line.
    """
    file, function = split_function(name, setting)
    module = load_file(file)
    if not callable(getattr(module, function, None)):
        raise ValueError(f"{file} has no function {function!r}")
    result: Callable[..., Any] = getattr(module, function)
    return result


def digest_function(name: str, setting: str) -> str:
    """What an address has of a function: its name, and the text of its file.

    Raises:
      FileNotFoundError: there is no such file.
    """
    file, function = split_function(name, setting)
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {file}, which `{setting}` names")
    return f"{function} {hashlib.sha256(path.read_bytes()).hexdigest()[:20]}"


def split_function(name: str, setting: str) -> tuple[str, str]:
    """`FILE.py:FUNCTION` -> the file and the function's name.

    Raises:
      ValueError: it is written otherwise.
    """
    file, _, function = name.rpartition(":")
    if not file.endswith(".py") or not function.isidentifier():
        raise ValueError(f"{setting}: write path/to/file.py:function, not {name!r}")
    return file, function
