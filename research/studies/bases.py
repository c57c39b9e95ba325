"""Bases and tokenizers of a study: made by their command lines where they are not there.

A base that a study makes is known to its trials by how it is made, not by its bits: another machine
rounds otherwise, and its results belong to the same study. So one that is there must have been made
as its line says.
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

from research.checkpoints import runs
from research.config import cli, schema
from research.experiment import Experiment
from research.runtime import storage
from research.runtime.locks import lock_file
from research.runtime.programs import run_program
from research.studies.addresses import without_defaults

# fields of a base's config that its weights do not depend on; its own base has a line of its own
_BESIDE = frozenset(
    "init_from mesh sharding_rules offload checkpoint log_every max_skipped checks evaluate_every "
    "evaluate_split evaluate_tokens evaluation".split()
)


def recipe(line: str) -> str:
    """How a base is made: its command line, and what the config says that it names."""
    content: list[Any] = [shlex.split(line)]
    if (experiment := _experiment_of(line)) is not None:
        content.append(without_defaults(experiment))
    # the whole digest, unlike a trial's: ledgers have it so
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _experiment_of(line: str) -> Experiment | None:
    """The config that a command line names; None: it names none."""
    words = shlex.split(line)
    if "--config" not in words[:-1]:
        return None
    file = words[words.index("--config") + 1]
    overrides = [word for word in words if word.startswith("--config.")]
    return cli.load(Experiment, file, (o.removeprefix("--config.") for o in overrides))


def teacher_of(experiment: Experiment, recipes: Mapping[str, str]) -> dict[str, str]:
    """What a trial's address says of the teacher of its loss: how it is made, or its bits."""
    path = experiment.loss.teacher
    if path is None:
        return {}
    return {"teacher": recipes.get(path) or runs.open_run(path).fingerprint}


def check_made(path: str, line: str) -> None:
    """Looks whether a base that is there was trained by the config of its command line, places of
    files aside.

    Raises:
      ValueError: naming what differs: trials would be known by the one and stand on the other.
    """
    experiment = _experiment_of(line)
    if experiment is None or path.endswith(".json"):
        return
    of_run = runs.open_run(path).experiment
    then = {} if of_run is None else _without_places(schema.to_dict(of_run))
    now = _without_places(schema.to_dict(experiment))
    changed_names = [name for name in now if name not in _BESIDE and now[name] != then.get(name)]
    if changed_names:
        what = (
            "was imported, not trained" if of_run is None else f"{', '.join(changed_names)} differ"
        )
        raise ValueError(
            f"the base {path} is not what the study makes ({what}): {line}\nMove it away and it is "
            "made anew, or give this one another folder in `bases`"
        )


def _without_places(content: Any, name: str = "") -> Any:
    """A config as JSON, with the last part of each path alone: a clone may lie elsewhere."""
    if isinstance(content, Mapping):
        return {key: _without_places(each, key) for key, each in content.items()}
    if isinstance(content, list | tuple):
        return [_without_places(each, name) for each in content]
    is_place = isinstance(content, str) and name in ("path", "tokenizer", "teacher")
    return content.rpartition("/")[2] if is_place else content


def missing_bases(bases: Mapping[str, str]) -> list[str]:
    """The `graft` command lines of the bases that are not there or not finished, in their order."""
    return [line for path, line in bases.items() if not _is_there(path)]


def make_bases(bases: Mapping[str, str]) -> None:
    """Makes every base that is not there, and goes on with one that is not finished, each in a
    process of its own.

    Raises:
      ValueError: a command fails, or does not make what it is for, or a base is there that was
        made otherwise.
    """
    for path, line in bases.items():
        if _is_there(path):
            check_made(path, line)
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
