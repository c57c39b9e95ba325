"""Where examples come from: TFDS builders, JSONL files, folders of text.

A source has `len()` and `source[i] -> dict`, gives text as `str`, knows its `name`, and has a
`fingerprint` that changes when its content does. A new kind is one function and one line in
`KINDS`.
"""

import dataclasses
import difflib
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

# Files of a prepared TFDS dataset up to this size are hashed whole.
_WHOLE_FILE = 64 * 2**20
_BLOCK = 2**20


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """One source and its share of the mixture."""

    # Name in statistics and metrics; for kind "tfds" also the name of the dataset.
    name: str
    # One of `KINDS`.
    kind: str = "tfds"
    # jsonl: a file; text: a folder; tfds: the data folder (None: the default one).
    # `{split}` in it is replaced by the name of the split.
    path: str | None = None
    # Split that is trained on.
    split: str = "train"
    # Share of the rows of every batch, relative to the other sources.
    weight: float = 1.0
    # Wanted field -> field in the file, such as {"text": "content"}; unnamed fields keep theirs.
    fields: Mapping[str, str] = dataclasses.field(default_factory=dict)
    # Of a bank of adapters: the one that this source's rows use and train.
    adapter: str | None = None


class Source(Protocol):
    """Random access to examples. `fingerprint` identifies the content."""

    name: str

    @property
    def fingerprint(self) -> str: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...


def open_source(config: SourceConfig, split: str | None = None) -> Source:
    """Opens `split` (default: the one that is trained on) of a source.

    Raises:
        ValueError: unknown kind, or the source has no such split.
        FileNotFoundError: the file or folder is not there.
    """
    if config.kind not in KINDS:
        raise ValueError(
            f"Source {config.name!r} has the unknown kind {config.kind!r}"
            f"{_near(config.kind, KINDS)}"
        )
    return KINDS[config.kind](config, split or config.split)


def decode_text(value: Any) -> Any:
    """Bytes (as TFDS gives text) and numpy scalars become `str` and Python numbers."""
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, np.ndarray) and value.dtype == object:
        return [decode_text(item) for item in value.tolist()]
    return value.item() if isinstance(value, np.generic) else value


def _near(word: str, known: Any) -> str:
    near = difflib.get_close_matches(word, list(known), n=1)
    return (f"; did you mean {near[0]!r}?" if near else ";") + f" Known: {sorted(known)}."


class _Records:
    """Common part: the field map, decoding, and errors that name the place."""

    def __init__(
        self,
        config: SourceConfig,
        split: str,
        records: Any,  # len() and [i] -> mapping
        fingerprint: Callable[[], str],
        place: Callable[[int], str],
    ):
        self.name = f"{config.name}:{split}"
        self._fields = dict(config.fields)
        self._records = records
        self._compute_fingerprint = fingerprint
        self._fingerprint: str | None = None
        self._place = place

    @property
    def fingerprint(self) -> str:
        if self._fingerprint is None:
            content = f"{self._compute_fingerprint()} {json.dumps(self._fields, sort_keys=True)}"
            self._fingerprint = hashlib.sha256(content.encode()).hexdigest()
        return self._fingerprint

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self._records[index]
        try:
            example = {key: decode_text(value) for key, value in record.items()}
        except UnicodeDecodeError as error:
            raise ValueError(f"{self._place(index)}: not UTF-8 text: {error}") from error
        for there in self._fields.values():
            if there not in example:
                raise ValueError(
                    f"{self._place(index)}: there is no field {there!r}{_near(there, example)}"
                )
        renamed = {wanted: example[there] for wanted, there in self._fields.items()}
        return {**{k: v for k, v in example.items() if k not in self._fields.values()}, **renamed}


def _path(config: SourceConfig, split: str) -> Path:
    if not config.path:
        raise ValueError(f"Source {config.name!r} of kind {config.kind!r} needs a `path`.")
    if "{split}" not in config.path and split != config.split:
        raise ValueError(
            f"Source {config.name!r} has only the split {config.split!r}, not {split!r}: "
            f"write '{{split}}' in its path, {config.path!r}, where the split's name belongs."
        )
    return Path(os.path.expanduser(config.path.replace("{split}", split)))


class _JsonLines:
    """Lines of one JSONL file, found by byte offset and parsed when asked for."""

    def __init__(self, path: Path):
        self.path = path
        starts, numbers, at = [], [], 0
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    starts.append((at, at + len(line)))
                    numbers.append(number)
                at += len(line)
        self._spans = np.asarray(starts, np.int64).reshape(-1, 2)
        self._numbers = np.asarray(numbers, np.int64)
        # An empty file cannot be mapped.
        self._bytes = np.memmap(path, np.uint8, mode="r") if at else np.zeros(0, np.uint8)

    def place(self, index: int) -> str:
        return f"{self.path}:{self._numbers[index]}"

    def __len__(self) -> int:
        return len(self._spans)

    def __getitem__(self, index: int) -> dict[str, Any]:
        start, stop = self._spans[index]
        try:
            record = json.loads(self._bytes[start:stop].tobytes())
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{self.place(index)}: not a line of JSON: {error}") from error
        if not isinstance(record, dict):
            raise ValueError(
                f"{self.place(index)}: a JSON object is needed, such as "
                f'{{"text": "..."}}, not a {type(record).__name__}.'
            )
        return record


def _jsonl(config: SourceConfig, split: str) -> Source:
    path = _path(config, split)
    if not path.is_file():
        raise FileNotFoundError(f"Source {config.name!r}: there is no file {path}.")
    lines = _JsonLines(path)
    return _Records(config, split, lines, lambda: _file_digest(path, None), lines.place)


class _TextFiles:
    """Every `.txt` or `.md` file under a folder, in the order of its name."""

    def __init__(self, folder: Path):
        self.files = sorted(
            p for p in folder.rglob("*") if p.suffix in (".txt", ".md") and p.is_file()
        )
        self._folder = folder

    def fingerprint(self) -> str:
        parts = [(self.id(i), _file_digest(p, None)) for i, p in enumerate(self.files)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def id(self, index: int) -> str:
        return self.files[index].relative_to(self._folder).as_posix()

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"text": self.files[index].read_bytes(), "id": self.id(index)}


def _text(config: SourceConfig, split: str) -> Source:
    folder = _path(config, split)
    if not folder.is_dir():
        raise FileNotFoundError(f"Source {config.name!r}: there is no folder {folder}.")
    files = _TextFiles(folder)
    if not len(files):
        raise FileNotFoundError(f"Source {config.name!r}: no .txt or .md file under {folder}.")
    return _Records(config, split, files, files.fingerprint, lambda i: str(files.files[i]))


def _tfds(config: SourceConfig, split: str) -> Source:
    from research.data import builders  # Here: TFDS takes a second to import.

    records: Any = builders.load(config.name, split, data_dir=config.path)
    place = f"TFDS dataset {config.name!r}, split {split!r}"

    def fingerprint() -> str:
        """Name, version, split and the size and digest of its files (large ones: their ends)."""
        info = records.dataset_info
        files = sorted(info.splits[split].filepaths, key=os.fspath)
        digests = [(p.name, _file_digest(p, _WHOLE_FILE)) for p in files]
        parts = [info.name, str(info.version), split, len(records), digests]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    return _Records(config, split, records, fingerprint, lambda i: f"{place}, row {i}")


def _file_digest(path: Any, whole: int | None) -> str:
    """sha256 of size and content; of size, first and last MiB if larger than `whole` bytes.

    Uses only open, seek and read, so that `path` may be an `epath.Path` in a bucket.
    """
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        digest = hashlib.sha256(f"{size} ".encode())
        file.seek(0)
        if whole is not None and size > whole:
            digest.update(file.read(_BLOCK))
            file.seek(size - _BLOCK)
        while block := file.read(_BLOCK):
            digest.update(block)
        return digest.hexdigest()


# Kind -> (config, split) -> source.
KINDS: dict[str, Callable[[SourceConfig, str], Source]] = {
    "tfds": _tfds,
    "jsonl": _jsonl,
    "text": _text,
}
