"""Folders of text files."""

import hashlib
import json
from pathlib import Path
from typing import Any

from research.data.sources.base import Records, Source, SourceConfig, file_digest, local_path


class _TextFiles:
    """Every `.txt` or `.md` file under a folder, in the order of its name."""

    def __init__(self, folder: Path):
        self.files = sorted(
            p for p in folder.rglob("*") if p.suffix in (".txt", ".md") and p.is_file()
        )
        self._folder = folder

    def fingerprint(self) -> str:
        parts = [(self.id(i), file_digest(p, None)) for i, p in enumerate(self.files)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def id(self, index: int) -> str:
        return self.files[index].relative_to(self._folder).as_posix()

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"text": self.files[index].read_bytes(), "id": self.id(index)}


def open_text(config: SourceConfig, split: str) -> Source:
    """The files of a folder."""
    folder = local_path(config, split)
    if not folder.is_dir():
        raise FileNotFoundError(f"Source {config.name!r}: there is no folder {folder}.")
    files = _TextFiles(folder)
    if not len(files):
        raise FileNotFoundError(f"Source {config.name!r}: no .txt or .md file under {folder}.")
    return Records(config, split, files, files.fingerprint, lambda i: str(files.files[i]))
