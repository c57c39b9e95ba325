"""Bases of a study: made by their command lines where they are not there."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Mapping

from research.runtime import storage


def missing_bases(bases: Mapping[str, str]) -> list[str]:
    """The `graft` command lines of the bases that are not there, in their order."""
    return [line for folder, line in bases.items() if not storage.is_folder(folder)]


def make_bases(bases: Mapping[str, str]) -> None:
    """Makes every base that is not there, each in a process of its own.

    Raises:
      ValueError: a command fails, or does not make what it is for.
    """
    for folder, line in bases.items():
        if storage.is_folder(folder):
            continue
        print(f"$ {line}", flush=True)
        program, *arguments = shlex.split(line)
        if program != "graft":
            raise ValueError(f"the base {folder} must be made by a graft command, not {line!r}")
        process = subprocess.run([sys.executable, "-m", "research.cli", *arguments])
        if process.returncode or not storage.is_folder(folder):
            raise ValueError(f"{line}: ended with {process.returncode}, and made no {folder}")
