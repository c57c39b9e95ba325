"""Stages on disk: a folder named by the hash of what the stage depends on, and a marker.

    DIR/stages/NAME-HASH/000000.npy ...    one file for each range of documents
    DIR/stages/NAME-HASH/done.json         written last: what it depends on, and every file's digest

A folder without its marker is what a killed run left: nothing reads it, and it is made again. So
is one whose files are not those of its marker.
"""

import dataclasses
import hashlib
import io
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from etils import epath

from research.data.sources.files import BUCKETS, digest
from research.runtime import files

# Part of every key: raise it when files or their meaning change.
SCHEMA = 2
_MARKER = "done.json"
# Files up to this size are hashed whole when they are looked at again; larger ones at both ends.
_WHOLE_FILE = 2**20


@dataclasses.dataclass(frozen=True)
class Stage:
    """One step of the preparation, and the folder of its files."""

    name: str
    # The folder of the whole preparation; a disk or a bucket.
    root: str
    # What its result depends on, as JSON.
    dependencies: Mapping[str, Any]

    @property
    def key(self) -> str:
        """Hash of the dependencies, which later stages depend on."""
        content = json.dumps({"schema": SCHEMA, **self.dependencies}, sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    @property
    def folder(self) -> epath.Path:
        return epath.Path(self.root) / "stages" / f"{self.name}-{self.key}"

    def file(self, number: int) -> epath.Path:
        """The file of one range of documents."""
        return self.folder / f"{number:06d}.npy"

    def status(self) -> str:
        """One of "done" and "missing", or what is wrong with the folder."""
        marker = self.folder / _MARKER
        if not marker.exists():
            return "unfinished" if self.folder.exists() else "missing"
        try:
            marker_content = json.loads(marker.read_text())
            if marker_content["depends"] != json.loads(json.dumps(dict(self.dependencies))):
                return "foreign: its marker names other content"
            names = set(_files(self.folder))
            if missing_names := sorted(set(marker_content["files"]) - names):
                return f"damaged: {missing_names[0]} is lost"
            if unexpected_names := sorted(names - set(marker_content["files"])):
                return f"foreign: {unexpected_names[0]} is not its own"
            for name, expected_digest in marker_content["files"].items():
                if _digest(self.folder / name) != expected_digest:
                    return f"damaged: {name} is not what was written"
        except (ValueError, KeyError, TypeError, OSError) as error:
            return f"damaged: {error}"
        return "done"

    def build(self, write_files: Callable[[], None]) -> float:
        """Calls `write_files` to fill the folder, and marks it as done; returns the seconds.

        Raises:
          LinkError: the folder of all stages is a symbolic link.
        """
        files.remove(self.folder, epath.Path(self.root))
        self.folder.mkdir(parents=True)
        start = time.perf_counter()
        write_files()
        seconds = time.perf_counter() - start
        for name in _files(self.folder):  # of a worker that died while it wrote
            if name.rpartition("/")[2].startswith("."):
                (self.folder / name).unlink()
        marker_content = {
            "stage": self.name,
            "depends": dict(self.dependencies),
            "seconds": round(seconds, 3),
            "files": {name: _digest(self.folder / name) for name in _files(self.folder)},
        }
        write(self.folder / _MARKER, json.dumps(marker_content, indent=1).encode())
        return seconds

    def fingerprint(self) -> str:
        """Hash of the files that it wrote."""
        files = json.loads((self.folder / _MARKER).read_text())["files"]
        return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def _files(folder: epath.Path) -> list[str]:
    """Paths below the folder, without the marker."""
    names: list[str] = []
    for path in folder.iterdir():
        if path.is_dir():
            names += [f"{path.name}/{name}" for name in _files(path)]
        elif path.name != _MARKER:
            names.append(path.name)
    return sorted(names)


def _digest(path: epath.Path) -> str:
    with path.open("rb") as file:
        return digest(file, _WHOLE_FILE)[:32]


def check_folder(root: str | os.PathLike[str]) -> None:
    """Raises ValueError if the folder holds other files, or its storage cannot be opened."""
    folder = epath.Path(root)
    try:
        exists = folder.exists()
    except ImportError as error:
        raise ValueError(f"{folder} cannot be opened: {error}. {BUCKETS}") from error
    if exists and not folder.is_dir():
        raise ValueError(f"{folder} is a file: name a folder.")
    if exists and any(folder.iterdir()) and not (folder / "stages").is_dir():
        raise ValueError(
            f"{folder} holds other files: name a new folder, or one that was prepared before."
        )


def write(path: epath.Path, content: bytes) -> None:
    """Writes a file, whole or not at all; several workers may write the same one at once."""
    files.atomic_write(path, content)


def save(path: epath.Path, array: np.ndarray) -> None:
    """Writes an array as .npy, whole or not at all."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    write(path, buffer.getvalue())


def load(path: epath.Path, *, memory_map: bool = False) -> np.ndarray:
    """Reads an array; `memory_map`: into memory, where it lies on a disk."""
    if memory_map and "://" not in os.fspath(path):
        return np.load(os.fspath(path), mmap_mode="r", allow_pickle=False)
    with path.open("rb") as file:
        return np.load(io.BytesIO(file.read()), allow_pickle=False)


def removed_mask(stages: Iterable[Stage], number: int, rows: int) -> np.ndarray:
    """Mask [rows] of the documents of a range that one of these stages removes."""
    is_removed = np.zeros(rows, bool)
    for stage in stages:
        is_removed |= load(stage.file(number)) >= 0
    return is_removed
