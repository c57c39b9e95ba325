"""Bases and tokenizers of a study: made by their command lines where they are not there.

A base that a study makes is known to its trials by how it is made, not by its bits: another machine
rounds otherwise, and its results belong to the same study.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from research.config import cli
from research.experiment import Experiment
from research.runtime import storage
from research.runtime.locks import lock_file
from research.runtime.programs import run_program
from research.studies.addresses import without_defaults


def recipe(line: str) -> str:
    """How a base is made: its command line, and what the config says that it names."""
    words = shlex.split(line)
    content: list[Any] = [words]
    if "--config" in words[:-1]:
        file = words[words.index("--config") + 1]
        overrides = [word for word in words if word.startswith("--config.")]
        experiment = cli.load(Experiment, file, (o.removeprefix("--config.") for o in overrides))
        content.append(without_defaults(experiment))
    # the whole digest, unlike a trial's: ledgers have it so
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def missing_bases(bases: Mapping[str, str]) -> list[str]:
    """The `graft` command lines of the bases that are not there or not finished, in their order."""
    return [line for path, line in bases.items() if not _is_there(path)]


def make_bases(bases: Mapping[str, str]) -> None:
    """Makes every base that is not there, and goes on with one that is not finished, each in a
    process of its own.

    Raises:
      ValueError: a command fails, or does not make what it is for.
    """
    for path, line in bases.items():
        if _is_there(path):
            continue
        with contextlib.ExitStack() as stack:
            if not storage.is_remote(path):  # processes of one study wait for the first
                place = Path(path)
                stack.enter_context(lock_file(place.with_name(f".{place.name}.making.lock")))
            if not _is_there(path):
                _make(path, line)


def _make(path: str, line: str) -> None:
    print(f"$ {line}", flush=True)
    program, *arguments = shlex.split(line)
    if program != "graft":
        raise ValueError(f"the base {path} must be made by a graft command, not {line!r}")
    process = run_program([sys.executable, "-m", "research.cli", *arguments])
    if process.returncode or not _is_there(path):
        raise ValueError(f"{line}: ended with {process.returncode}, and made no {path}")


def _is_there(path: str) -> bool:
    """A base is a folder, a tokenizer a file; a run that was stopped before its end is no base."""
    if path.endswith(".json"):
        return Path(path).is_file()
    place = storage.absolute(path)
    is_unfinished = storage.is_folder(place / "checkpoints") and not storage.is_folder(
        place / "model"
    )
    return storage.is_folder(place) and not is_unfinished
