"""A folder of task files for lm-evaluation-harness, which passes over those that it cannot read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """YAML as lm-eval's files have it: functions by name, and nothing else of Python."""

    functions: list[str]


def _function(loader: _Loader, node: yaml.Node) -> str:
    loader.functions.append(str(node.value))
    return str(node.value)


_Loader.add_constructor("!function", _function)


def check_folder(folder: str) -> list[str]:
    """The functions that the files name, `FILE: MODULE.FUNCTION`: they run with the user's rights.

    Raises:
      ValueError: there is no such folder, a file is no YAML, or two are of one task.
    """
    if not Path(folder).is_dir():
        raise ValueError(f"--lm-eval-tasks {folder} is no folder")
    functions: list[str] = []
    files: dict[str, Path] = {}
    for path in sorted(Path(folder).rglob("*.yaml")):
        content, names = _read(path)
        functions += [f"{path}: {name}" for name in names]
        name = content.get("task") if isinstance(content, dict) else None
        if not isinstance(name, str):
            continue  # a group, or what others include
        if name in files:
            raise ValueError(f"{path} and {files[name]} are both of the task {name}: keep one")
        files[name] = path
    return functions


def _read(path: Path) -> tuple[Any, list[str]]:
    try:
        loader = _Loader(path.read_bytes())
        loader.functions = []
        content = loader.get_single_data()
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        message = " ".join(str(error).split())
        raise ValueError(f"{path}: no YAML of a task: {message:.300}") from None
    if content is None:
        raise ValueError(f"{path}: it is empty")
    return content, loader.functions
