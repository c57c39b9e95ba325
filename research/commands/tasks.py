"""Lists the tasks that come with Graft: what each asks, of what, under which licence.

    graft tasks
    graft evaluate --task law --run runs/quickstart/lora

A task is a config of `graft evaluate`, one file in configs/tasks: a new one needs no other edit.
`--config.a.b=value` changes it as any other.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

from research.config import cli
from research.config.suggestions import suggestion
from research.runtime.terminal import show

FOLDER = Path(__file__).resolve().parents[2] / "configs" / "tasks"


@dataclasses.dataclass(frozen=True)
class TaskFile:
    """What the docstring of a task's config says."""

    name: str
    path: Path
    # its first line, what its questions are, and their licence
    summary: str
    questions: str
    licence: str


def find_tasks() -> dict[str, TaskFile]:
    """Name -> task, of all that there are."""
    return {path.stem: _read(path) for path in sorted(FOLDER.glob("*.py"))}


def task_config(name: str) -> str:
    """The config of a task, as `--config` takes it.

    Raises:
      ValueError: there is none of this name; says the nearest.
    """
    stem, colon, variant = name.partition(":")
    tasks = find_tasks()
    if stem not in tasks:
        raise ValueError(
            f"there is no task {stem!r}{suggestion(stem, tasks)} (`graft tasks` lists them)"
        )
    return f"{tasks[stem].path}{colon}{variant}"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="graft tasks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    cli.complete(parser).parse_args(argv)
    tasks = find_tasks()
    width = max(map(len, tasks))
    for name, task in tasks.items():
        show(f"{name:{width}}  {task.summary}")
        show(f"{'':{width}}  {task.questions} {task.licence}\n")
    show("graft evaluate --task NAME --run DIR")


def _read(path: Path) -> TaskFile:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    words = " ".join(docstring.split())
    questions = re.search(r"Questions: .+?(?= Licence: )", words)
    licence = re.search(r"Licence: .+?\.(?= |\Z)", words)
    return TaskFile(
        name=path.stem,
        path=path,
        summary=docstring.partition("\n")[0],
        questions=questions[0] if questions else "",
        licence=licence[0] if licence else "",
    )
