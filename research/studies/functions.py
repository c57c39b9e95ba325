"""Functions of a study's own, which its settings name as FILE.py:FUNCTION."""

from __future__ import annotations

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
    file, function = split_function(name, setting)
    module = load_file(file)
    if not hasattr(module, function):
        raise ValueError(f"{file} has no function {function!r}")
    with errors_with_line(file):
        return getattr(module, function)(*arguments)


def split_function(name: str, setting: str) -> tuple[str, str]:
    """`FILE.py:FUNCTION` -> the file and the function's name.

    Raises:
      ValueError: it is written otherwise.
    """
    file, _, function = name.rpartition(":")
    if not file.endswith(".py") or not function.isidentifier():
        raise ValueError(f"{setting}: write path/to/file.py:function, not {name!r}")
    return file, function
