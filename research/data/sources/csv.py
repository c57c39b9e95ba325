"""Files of comma- or tab-separated values with a header, one or several, local or in a bucket."""

import contextlib
import csv
import dataclasses
import itertools
import json
import re
import shlex
from collections.abc import Iterator, Sequence
from typing import Any, Literal, TextIO

import numpy as np
import pyarrow

from research.data.sources import contents, files
from research.data.sources.base import FilesConfig, Source
from research.data.sources.records import Records
from research.runtime.expansion import check_record, max_record_bytes

# Rows that become columns at once.
_ROWS = 1024
_TEXT = pyarrow.large_string()
_END_OF_LINE = re.compile(r"\r\n|\r|\n")


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
        ValueError: no such file, with the line where it is torn or a quote is not closed, or two
          columns of one name.
    """
    copy = files.local_copy(file)
    with copy.open("rb") as start:  # the values of any text can be separated
        if what := contents.describe(start.read(contents.HEAD), "csv"):
            raise ValueError(f"{file.name}: {what}")
    csv.field_size_limit(max_record_bytes())
    with copy.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as text:
        rows = _rows(_Lines(text, file.name), delimiter)
        names = next(rows, None)
        if names is None:
            raise ValueError(f"{file.name}: an empty file; the first line must name the fields")
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(
                f"{file.name}: several columns are named {twice[0]!r}: rename all but one"
            )
        batches = []
        while block := list(itertools.islice(rows, _ROWS)):
            columns = [pyarrow.array(each, _TEXT) for each in zip(*block, strict=True)]
            batches.append(pyarrow.record_batch(columns, names))
    schema = pyarrow.schema([(name, _TEXT) for name in names])
    table = pyarrow.Table.from_batches(batches, schema)
    if number_field in names:
        with contextlib.suppress(pyarrow.ArrowInvalid):
            numbers = table[number_field].cast(pyarrow.int64())
            table = table.set_column(names.index(number_field), number_field, numbers)
    return table


class _Lines:
    """Lines of a file, and those of the row that is being read."""

    def __init__(self, file: TextIO, name: str):
        self._file, self.name = file, name
        self._number = 0
        self.start_row()

    def start_row(self) -> None:
        """The next line is the first of a row."""
        self.row: list[str] = []
        self._size = 0

    def place(self, before: str = "") -> str:
        """File and line of what follows the text `before` in this row."""
        first = self._number - len(self.row) + 1
        return f"{self.name}, line {first + len(_END_OF_LINE.findall(before))}"

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._file.readline(max_record_bytes() + 1)
        if not line:
            raise StopIteration
        self._number += 1
        self.row.append(line)
        try:
            self._size += len(line.encode())
        except UnicodeEncodeError as error:
            rest = line[error.start :].encode(errors="surrogateescape")
            raise ValueError(
                f"{self.name}, line {self._number}: not UTF-8 text, from {rest!r:.40}; "
                f"{contents.ENCODING}"
            ) from None
        unclosed = " (or a quote that is not closed)" if len(self.row) > 1 else ""
        check_record(self._size, self.place() + unclosed)
        return line


def _rows(lines: _Lines, delimiter: str) -> Iterator[list[str]]:
    """The header and all rows, of as many values each; blank lines are none.

    Raises:
        ValueError: a row has another number of values, or quotes that do not fit together.
    """
    reader, width = csv.reader(lines, delimiter=delimiter, strict=True), 0
    while True:
        lines.start_row()
        try:
            row = next(reader, None)
        except csv.Error:
            raise ValueError(_explain_quotes(lines, delimiter)) from None
        if row is None:
            return
        if not row:
            continue
        width = width or len(row)
        if len(row) != width:
            text = "".join(lines.row).rstrip("\r\n")
            raise ValueError(
                f"{lines.place()}: {len(row)} values for {width} columns: {text!r:.80}"
            )
        yield row


def _explain_quotes(lines: _Lines, delimiter: str) -> str:
    """The error about a row whose quotes do not fit together: where that value begins."""
    text, at, sign = "".join(lines.row), 0, re.escape(delimiter)
    value = re.compile(rf'(?:"[^"]*(?:""[^"]*)*"|(?!")[^{sign}\r\n]*){sign}')
    while match := value.match(text, at):
        at = match.end()
    setting = "" if delimiter == "," else f", delimiter={json.dumps(delimiter)}"
    reader = f'csv.reader(sys.stdin{setting}, doublequote=False, escapechar="\\\\")'
    program = f"import csv, sys; csv.writer(sys.stdout{setting}).writerows({reader})"
    return (
        f"{lines.place(text[:at])}: a value opens with a quote that is not closed, or goes on "
        f"behind its closing quote: {text[at:]!r:.80}. In a value between quotes, write a quote "
        'twice (""). Where backslashes stand before them, convert the file with python -c '
        f"{shlex.quote(program)} < FILE > NEW"
    )


@dataclasses.dataclass(frozen=True)
class CsvConfig(FilesConfig):
    """Files of separated values, whose first line names the fields."""

    # What stands between two values, such as "\\t".
    delimiter: str = ","
    kind: Literal["csv"] = "csv"

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.delimiter) != 1 or self.delimiter in '"\r\n':
            raise ValueError(
                f"delimiter must be one character, no quote and no end of a line, not "
                f"{self.delimiter!r}"
            )

    def open(self, split: str) -> Source:
        """The rows of all files at the source's path."""
        # a label with label words is a number; all else stays as it is written
        label = self.fields.get("label", "label") if self.label_words else None
        paths = files.find(self, split)
        rows = _CsvRows(paths, self.delimiter, label)
        return Records(self, split, rows, rows.fingerprint, rows.place, files=paths)
