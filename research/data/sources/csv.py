"""Files of comma- or tab-separated values with a header, one or several, local or in a bucket."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pyarrow
from pyarrow import csv

from research.data.sources import files
from research.data.sources.base import FilesConfig, Records, Source


class _CsvRows:
    """Rows, all in memory: this is for labelled sets, not for a corpus."""

    def __init__(self, paths: Sequence[files.File], delimiter: str):
        self._files = list(paths)
        self._tables = [_read(file, delimiter) for file in paths]
        self._firsts = np.cumsum([0, *(table.num_rows for table in self._tables)])

    def fingerprint(self) -> str:
        return files.joint_digest([file.digest() for file in self._files])

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


def _read(file: files.File, delimiter: str) -> pyarrow.Table:
    """All rows of a file; a column of whole numbers alone has numbers, every other one text."""
    copy = files.local_copy(file)
    parsing = csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    try:
        with csv.open_csv(copy, parse_options=parsing) as reader:
            names = reader.schema.names
        texts = csv.ConvertOptions(column_types=dict.fromkeys(names, pyarrow.string()))
        table = csv.read_csv(copy, parse_options=parsing, convert_options=texts)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{file.name}: damaged, or no CSV file with a header: {error}") from error
    for number, name in enumerate(table.column_names):
        try:
            table = table.set_column(number, name, table[name].cast(pyarrow.int64()))
        except pyarrow.ArrowInvalid:
            continue
    return table


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
        rows = _CsvRows(files.find(self, split), self.delimiter)
        return Records(self, split, rows, rows.fingerprint, rows.place)
