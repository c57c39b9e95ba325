"""Files and folders that appear whole or not at all, whatever kills the process that writes them.

They are written under a name of their own beside their place, flushed to the disk, and renamed, so
that several processes may write the same one at once. In a bucket every object appears whole.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from research.runtime import storage


def atomic_write(path: str | os.PathLike[str], content: bytes | str) -> None:
    """Writes a file; its folder is made.

    Raises:
      StorageError: the bucket refuses or does not answer.
    """
    data = content.encode() if isinstance(content, str) else content
    if storage.is_remote(path):
        storage.upload_bytes(data, storage.absolute(path))
        return
    with atomic_path(Path(storage.absolute(path))) as partial:
        partial.write_bytes(data)


def atomic_copy(file: Path, path: str | os.PathLike[str]) -> None:
    """Copies a file of a disk, of any size.

    Raises:
      StorageError: the bucket refuses or does not answer.
    """
    if storage.is_remote(path):
        storage.upload_file(file, storage.absolute(path))
        return
    with atomic_path(Path(storage.absolute(path))) as partial:
        shutil.copyfile(file, partial)


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Writes a JSON file; numbers that are not finite become null."""
    atomic_write(path, json.dumps(_finite(content), indent=2, allow_nan=False) + "\n")


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A path beside `path`, on a disk; the file that is written there takes the place of `path`.

    If the block raises, it is removed and `path` stays as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(path)
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """An empty folder beside `folder`, on a disk, which is renamed to it when the block ends.

    If the block raises, it is removed.

    Raises:
      OSError: there is such a folder, and it is not empty.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(folder)
    partial.mkdir()
    try:
        yield partial
        partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")


def _finite(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
