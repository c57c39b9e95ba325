"""Files of one JSON object a line: plain, `.gz` or `.zst`, one or several, local or in a bucket."""

import array
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, Literal

import numpy as np

from research.data.sources import contents, files
from research.data.sources.base import FilesConfig, Source
from research.data.sources.records import Records
from research.runtime import unique_json
from research.runtime.expansion import check_record

# Bytes of a line that are read at once.
_PIECE = 2**20


class _JsonLines:
    """Lines, found by byte offset in mapped plain files and parsed when asked for.

    24 bytes of memory a line. A compressed file, or one in a bucket, is read from its plain copy.
    """

    def __init__(self, paths: Sequence[files.File]):
        self._names = [file.name for file in paths]
        self._copies = [files.local_copy(file) for file in paths]
        places = array.array("q")  # start, stop and number of every line that is not empty
        self._firsts = [0]  # of each file's lines
        for copy in self._copies:
            at = 0
            with copy.open("rb") as file:
                for number, (size, is_blank) in enumerate(_lines(file), start=1):
                    if not is_blank:
                        places.extend((at, at + size, number))
                    at += size
            self._firsts.append(len(places) // 3)
        self._places = np.frombuffer(places, np.int64).reshape(-1, 3)
        # The file that was read last: thousands of parts would be too many to keep open.
        self._mapped: tuple[int, np.ndarray] = (-1, np.zeros(0, np.uint8))
        # What files are that a line of cannot be read.
        self._contents: dict[int, str | None] = {}

    def fingerprint(self) -> str:
        """The same for the same lines, however they are compressed and wherever they lie."""
        digests = []
        for copy in self._copies:
            with copy.open("rb") as file:
                digests.append(files.digest(file))
        return files.joint_digest(digests)

    def place(self, index: int) -> str:
        return f"{self._names[self._file_of(index)]}:{self._places[index][2]}"

    def _file_of(self, index: int) -> int:
        if index < 0:
            index += len(self)
        return int(np.searchsorted(self._firsts, index, side="right")) - 1

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> dict[str, Any]:
        start, stop, _ = self._places[index]
        check_record(int(stop - start), self.place(index))
        number, content = self._mapped
        if number != self._file_of(index):
            number = self._file_of(index)
            content = np.memmap(self._copies[number], np.uint8, mode="r")
            self._mapped = number, content
        try:
            record = unique_json.parse(content[start:stop].tobytes())
        except ValueError as error:
            reason = f"not a line of JSON that can be read: {error}"
            if not content[start:stop].tobytes().strip(b"\0\r\n"):
                reason = contents.ZEROS
            elif isinstance(error, UnicodeDecodeError) and error.encoding == "utf-8":
                reason += f"; {contents.ENCODING}"
            raise self._broken(index, reason) from error
        if not isinstance(record, dict):
            kind = type(record).__name__
            reason = f'a JSON object is needed, such as {{"text": "..."}}, not a {kind}.'
            raise self._broken(index, reason)
        return record

    def _broken(self, index: int, reason: str) -> ValueError:
        """The error about a line: what its whole file is, if it has no JSON lines at all."""
        number = self._file_of(index)
        if number not in self._contents:
            with self._copies[number].open("rb") as file:
                self._contents[number] = contents.describe(file.read(contents.HEAD), "jsonl")
        if what := self._contents[number]:
            return contents.FileError(f"{self._names[number]}: {what}")
        return ValueError(f"{self.place(index)}: {reason}")


def _lines(file: BinaryIO) -> Iterator[tuple[int, bool]]:
    """Size of each line, and whether it is blank; one of any length takes little memory."""
    size, is_blank = 0, True
    while piece := file.readline(_PIECE):
        size += len(piece)
        is_blank = is_blank and not piece.strip()
        if piece.endswith(b"\n"):
            yield size, is_blank
            size, is_blank = 0, True
    if size:
        yield size, is_blank


@dataclasses.dataclass(frozen=True)
class JsonlConfig(FilesConfig):
    """Files of one JSON object a line."""

    kind: Literal["jsonl"] = "jsonl"

    def open(self, split: str) -> Source:
        """The lines of all files at the source's path."""
        paths = files.find(self, split)
        lines = _JsonLines(paths)
        return Records(self, split, lines, lines.fingerprint, lines.place, files=paths)
