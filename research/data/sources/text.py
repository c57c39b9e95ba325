"""Folders of text files: every `.txt` or `.md` file that is not hidden, in the order of names."""

import codecs
import hashlib
import json
from typing import Any

from research.data.sources import files
from research.data.sources.base import Records, Source, SourceConfig


class _TextFiles:
    def __init__(self, found: dict[str, files.File]):
        self._ids = list(found)
        self._files = list(found.values())

    def fingerprint(self) -> str:
        parts = [(name, file.digest()) for name, file in zip(self._ids, self._files, strict=True)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def place(self, index: int) -> str:
        return self._files[index].name

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        with self._files[index].open() as file:
            # some editors begin a file with a mark of its byte order
            return {"text": file.read().removeprefix(codecs.BOM_UTF8), "id": self._ids[index]}


def open_text(config: SourceConfig, split: str) -> Source:
    """The files of a folder; `id` is the path below it."""
    texts = _TextFiles(files.under(config, split, (".txt", ".md")))
    return Records(config, split, texts, texts.fingerprint, texts.place)
