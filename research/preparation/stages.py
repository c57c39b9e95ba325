"""What a stage leaves on disk: a folder named by the hash of what it depends on, and a marker.

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
_DONE = "done.json"
# Files up to this size are hashed whole when they are looked at again; larger ones at both ends.
_WHOLE_FILE = 2**20


@dataclasses.dataclass(frozen=True)
class Stage:
    """One step of the preparation, and where its files are."""

    name: str
    # The folder of the whole preparation; a disk or a bucket.
    root: str
    # What its result depends on, as JSON.
    depends: Mapping[str, Any]

    @property
    def key(self) -> str:
        """What later stages depend on."""
        content = json.dumps({"schema": SCHEMA, **self.depends}, sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    @property
    def folder(self) -> epath.Path:
        return epath.Path(self.root) / "stages" / f"{self.name}-{self.key}"

    def file(self, number: int) -> epath.Path:
        """The file of one range of documents."""
        return self.folder / f"{number:06d}.npy"

    def state(self) -> str:
        """ "done", "missing", or what is wrong with what is there."""
        marker = self.folder / _DONE
        if not marker.exists():
            return "unfinished" if self.folder.exists() else "missing"
        try:
            about = json.loads(marker.read_text())
            if about["depends"] != json.loads(json.dumps(dict(self.depends))):
                return "foreign: its marker names other content"
            names = set(_files(self.folder))
            if lost := sorted(set(about["files"]) - names):
                return f"damaged: {lost[0]} is lost"
            if added := sorted(names - set(about["files"])):
                return f"foreign: {added[0]} is not its own"
            for name, wanted in about["files"].items():
                if _digest(self.folder / name) != wanted:
                    return f"damaged: {name} is not what was written"
        except (ValueError, KeyError, TypeError, OSError) as error:
            return f"damaged: {error}"
        return "done"

    def make(self, work: Callable[[], None]) -> float:
        """Runs `work`, which fills the folder, and marks it as done; returns the seconds."""
        if self.folder.exists():
            self.folder.rmtree()
        self.folder.mkdir(parents=True)
        start = time.perf_counter()
        work()
        seconds = time.perf_counter() - start
        for name in _files(self.folder):  # of a worker that died while it wrote
            if name.rpartition("/")[2].startswith("."):
                (self.folder / name).unlink()
        about = {
            "stage": self.name,
            "depends": dict(self.depends),
            "seconds": round(seconds, 3),
            "files": {name: _digest(self.folder / name) for name in _files(self.folder)},
        }
        write(self.folder / _DONE, json.dumps(about, indent=1).encode())
        return seconds

    def fingerprint(self) -> str:
        """Identifies the files that it wrote."""
        files = json.loads((self.folder / _DONE).read_text())["files"]
        return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def _files(folder: epath.Path) -> list[str]:
    """Paths below the folder, without the marker."""
    found: list[str] = []
    for path in folder.iterdir():
        if path.is_dir():
            found += [f"{path.name}/{name}" for name in _files(path)]
        elif path.name != _DONE:
            found.append(path.name)
    return sorted(found)


def _digest(path: epath.Path) -> str:
    with path.open("rb") as file:
        return digest(file, _WHOLE_FILE)[:32]


def check_own(root: str | os.PathLike[str]) -> None:
    """Raises ValueError if the folder holds something that is no preparation, or has no opener."""
    folder = epath.Path(root)
    try:
        there = folder.exists()
    except ImportError as error:
        raise ValueError(f"{folder} cannot be opened: {error}. {BUCKETS}") from error
    if there and not folder.is_dir():
        raise ValueError(f"{folder} is a file: name a folder.")
    if there and any(folder.iterdir()) and not (folder / "stages").is_dir():
        raise ValueError(
            f"{folder} holds other files: name a new folder, or one that was prepared before."
        )


def write(path: epath.Path, content: bytes) -> None:
    """A file whole or not at all; several workers may write the same one at once."""
    files.atomic_write(path, content)


def save(path: epath.Path, array: np.ndarray) -> None:
    """Writes an array as .npy, whole or not at all."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    write(path, buffer.getvalue())


def load(path: epath.Path, *, mapped: bool = False) -> np.ndarray:
    """Reads an array; mapped into memory if it lies on a disk and that is asked for."""
    if mapped and "://" not in os.fspath(path):
        return np.load(os.fspath(path), mmap_mode="r", allow_pickle=False)
    with path.open("rb") as file:
        return np.load(io.BytesIO(file.read()), allow_pickle=False)


def removed(stages: Iterable[Stage], number: int, rows: int) -> np.ndarray:
    """[rows] bool: which documents of a range one of these stages removes."""
    gone = np.zeros(rows, bool)
    for stage in stages:
        gone |= load(stage.file(number)) >= 0
    return gone
