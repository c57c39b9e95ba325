"""The code that numbers depend on, as one hash.

It covers every module of `research/` that some modules import, without comments, docstrings and
layout: a page that is only reworded keeps its results.
"""

from __future__ import annotations

import ast
import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]  # research/


@functools.cache
def code_hash(entries: tuple[str, ...]) -> str:
    """Sixteen hexadecimal digits of some modules of Graft and all that they import."""
    digest = hashlib.sha256()
    for module, path in sorted(reachable(entries).items()):
        digest.update(f"{module} {_normalized(path)}\n".encode())
    return digest.hexdigest()[:16]


def reachable(entries: Sequence[str]) -> dict[str, Path]:
    """Module -> file of some modules and what they import, at any depth, lazily or not."""
    modules: dict[str, Path] = {}
    waiting = list(entries)
    while waiting:
        module = waiting.pop()
        path = _file_of(module)
        if module in modules or path is None:
            continue
        modules[module] = path
        waiting.append(module.rpartition(".")[0])  # a package's __init__ runs first
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                waiting += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                waiting += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return modules


def _file_of(module: str) -> Path | None:
    first, *rest = module.split(".")
    if first != "research":
        return None
    path = ROOT.joinpath(*rest)
    candidates = (path / "__init__.py", path.with_suffix(".py"))
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def _normalized(path: Path) -> str:
    """The syntax tree without docstrings, which differs only where the program does."""
    parsed = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(parsed):
        if (
            isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            and ast.get_docstring(node, clean=False) is not None
        ):
            node.body = node.body[1:]
    return _as_text(parsed)


def _as_text(node: Any) -> str:
    """A tree as text, alike on all versions of Python: `ast.dump` is not."""
    if isinstance(node, ast.AST):
        fields = [
            f"{name}={_as_text(value)}"
            for name, value in ast.iter_fields(node)
            if value not in (None, []) and name not in ("ctx", "kind", "type_comment")
        ]
        return f"{type(node).__name__}({','.join(fields)})"
    if isinstance(node, list):
        return f"[{','.join(map(_as_text, node))}]"
    return repr(node)
