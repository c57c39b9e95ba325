"""Folders of text files: every `.txt` or `.md` file that is not hidden, in the order of names."""

import codecs
import dataclasses
import hashlib
import json
from typing import Any, Literal

from research.data.sources import contents, files
from research.data.sources.base import FilesConfig, Source
from research.data.sources.records import Records
from research.runtime.expansion import check_record, max_record_bytes


class _TextFiles:
    def __init__(self, paths: dict[str, files.File]):
        self._ids = list(paths)
        self._files = list(paths.values())

    def fingerprint(self) -> str:
        parts = [(name, file.digest()) for name, file in zip(self._ids, self._files, strict=True)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def place(self, index: int) -> str:
        return self._files[index].name

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        with self._files[index].open() as file:
            content = file.read(max_record_bytes() + 1)
        check_record(len(content), self.place(index))
        head = content[: contents.HEAD]
        is_odd = head.startswith(contents.LFS_POINTER) or b"\0" in head  # though it is UTF-8
        if is_odd and (what := contents.describe(head, "text")):
            raise ValueError(f"{self.place(index)}: {what}")
        # some editors begin a file with a mark of its byte order
        return {"text": content.removeprefix(codecs.BOM_UTF8), "id": self._ids[index]}


@dataclasses.dataclass(frozen=True)
class TextConfig(FilesConfig):
    """A folder of text files."""

    # The folder, on a disk or in a bucket; `{split}` in it is replaced by the name of the split.
    path: str
    kind: Literal["text"] = "text"

    def open(self, split: str) -> Source:
        """The files of a folder; `id` is the path below it."""
        paths = files.under(self, split, (".txt", ".md"))
        texts = _TextFiles(paths)
        return Records(
            self, split, texts, texts.fingerprint, texts.place, files=list(paths.values())
        )
