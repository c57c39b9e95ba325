"""Files of comma- or tab-separated values with a header, one or several, local or in a bucket."""

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow
from pyarrow import csv

from research.data.sources import contents, files
from research.data.sources.base import FilesConfig, Source
from research.data.sources.records import Records
from research.runtime.expansion import RECORD_VARIABLE, check_record, max_record_bytes

# Bytes that are parsed at once, unless a line is longer.
_BLOCK = 2**20


class _CsvRows:
    """Rows, all in memory: this is for labelled sets, not for a corpus."""

    def __init__(self, paths: Sequence[files.File], delimiter: str, number_field: str | None):
        self._files, self._delimiter = list(paths), delimiter
        self._tables = [_read(file, delimiter, number_field) for file in paths]
        self._firsts = np.cumsum([0, *(table.num_rows for table in self._tables)])

    def fingerprint(self) -> str:
        # the same bytes are other records with another delimiter
        return f"{self._delimiter!r} {files.joint_digest([file.digest() for file in self._files])}"

    def place(self, index: int) -> str:
        number = self._file_of(index)
        return f"{self._files[number].name}, row {index - self._firsts[number]}"

    def _file_of(self, index: int) -> int:
        return int(np.searchsorted(self._firsts, index, side="right")) - 1

    def __len__(self) -> int:
        return int(self._firsts[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        number = self._file_of(index)
        return self._tables[number].slice(index - int(self._firsts[number]), 1).to_pylist()[0]


def _read(file: files.File, delimiter: str, number_field: str | None) -> pyarrow.Table:
    """All rows of a file, as texts; the values of `number_field` as numbers, if all are whole ones.

    Raises:
        ValueError: no such file, with the row where it is torn, or two columns of one name.
    """
    copy, bad_rows = files.local_copy(file), []
    with copy.open("rb") as start:  # the values of any text can be separated
        if what := contents.describe(start.read(contents.HEAD), "csv"):
            raise ValueError(f"{file.name}: {what}")
    longest = _longest_line(copy, file.name)

    def note(row: csv.InvalidRow) -> str:
        bad_rows.append(row)
        return "error"

    parsing = csv.ParseOptions(
        delimiter=delimiter, newlines_in_values=True, invalid_row_handler=note
    )
    try:
        try:
            names, table = _parse(copy, parsing, max(_BLOCK, 2 * longest))
        except pyarrow.ArrowInvalid:
            if bad_rows:
                raise
            # perhaps a value of many lines, over the end of a block
            names, table = _parse(copy, parsing, max_record_bytes())
    except pyarrow.ArrowInvalid as error:
        if bad_rows:
            row = bad_rows[0]
            raise ValueError(
                f"{file.name}, line {row.number} (a value of several lines counts once): "
                f"{row.actual_columns} values for {row.expected_columns} columns: {row.text!r:.80}"
            ) from None
        if "invalid UTF8" in str(error):
            raise ValueError(f"{file.name}: not UTF-8 text: {error}; {contents.ENCODING}") from None
        raise ValueError(
            f"{file.name}: damaged, or no CSV file with a header, or a row of over "
            f"{max_record_bytes():,} bytes ({RECORD_VARIABLE}): {error}"
        ) from error
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{file.name}: several columns are named {twice[0]!r}: rename all but one")
    if number_field in names:
        with contextlib.suppress(pyarrow.ArrowInvalid):
            numbers = table[number_field].cast(pyarrow.int64())
            table = table.set_column(names.index(number_field), number_field, numbers)
    return table


def _parse(
    path: Path, parsing: csv.ParseOptions, block_bytes: int
) -> tuple[list[str], pyarrow.Table]:
    """The columns' names and all rows; a row must fit in a block."""
    # one thread, so that errors have the row
    reading = csv.ReadOptions(use_threads=False, block_size=block_bytes)
    with csv.open_csv(path, reading, parsing) as reader:
        names = reader.schema.names
    texts = csv.ConvertOptions(column_types=dict.fromkeys(names, pyarrow.string()))
    return names, csv.read_csv(path, reading, parsing, texts)


def _longest_line(path: Path, name: str) -> int:
    """Bytes of the longest line; ValueError with its number where it is too long."""
    longest, size, number = 0, 0, 1
    with path.open("rb") as file:
        while piece := file.readline(_BLOCK):
            size += len(piece)
            check_record(size, f"{name}, line {number}")
            longest = max(longest, size)
            if piece.endswith(b"\n"):
                size, number = 0, number + 1
    return longest


@dataclasses.dataclass(frozen=True)
class CsvConfig(FilesConfig):
    """Files of separated values, whose first line names the fields."""

    # What stands between two values, such as "\\t".
    delimiter: str = ","
    kind: Literal["csv"] = "csv"

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.delimiter) != 1:
            raise ValueError(f"delimiter must be one character, not {self.delimiter!r}")

    def open(self, split: str) -> Source:
        """The rows of all files at the source's path."""
        # a label with label words is a number; all else stays as it is written
        label = self.fields.get("label", "label") if self.label_words else None
        rows = _CsvRows(files.find(self, split), self.delimiter, label)
        return Records(self, split, rows, rows.fingerprint, rows.place)
