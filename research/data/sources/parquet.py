"""Parquet files, one or several, local or in a bucket."""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import pyarrow
from pyarrow import parquet

from research.data.sources import contents, files
from research.data.sources.base import FilesConfig, Source
from research.data.sources.records import Records
from research.runtime.expansion import (
    ExpansionError,
    check_expansion,
    check_record,
    expansion_limit,
    max_record_bytes,
)

# Rows that become Python objects at once.
_ROWS = 1024


class _ParquetRows:
    """Rows; the row group that was read last stays in memory.

    A row group is read whole, so rows in order are fast, and rows at random places are exact and
    slow: sources are read in order once, to be tokenized.
    """

    def __init__(self, paths: Sequence[files.File]):
        self._files = list(paths)
        groups = []  # file, group in it, rows
        for number, file in enumerate(paths):
            with _open_file(file) as parquet_file:
                names = parquet_file.schema_arrow.names
                if twice := sorted({name for name in names if names.count(name) > 1}):
                    raise ValueError(
                        f"{file.name}: several columns are named {twice[0]!r}: rename all but one"
                    )
                about = parquet_file.metadata
                groups += [
                    (number, group, about.row_group(group).num_rows)
                    for group in range(about.num_row_groups)
                ]
        self._groups = groups
        counts = [rows for _, _, rows in groups]
        self._firsts = np.cumsum([0, *counts])
        # What was read last: number of the group, its rows, and the bytes of those too long.
        self._group: tuple[int, pyarrow.Table, dict[int, int]] = (-1, pyarrow.table({}), {})
        self._block: tuple[int, list[dict[str, Any]]] = (-1, [])  # first row, and rows from there

    def fingerprint(self) -> str:
        return files.joint_digest([file.digest() for file in self._files])

    def place(self, index: int) -> str:
        number = self._group_of(index)
        file = self._groups[number][0]
        before = sum(rows for other, _, rows in self._groups[:number] if other == file)
        return f"{self._files[file].name}, row {before + index - self._firsts[number]}"

    def _group_of(self, index: int) -> int:
        return int(np.searchsorted(self._firsts, index, side="right")) - 1

    def __len__(self) -> int:
        return int(self._firsts[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index < 0:
            index += len(self)
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        first, rows = self._block
        if not first <= index < first + len(rows):
            number = self._group_of(index)
            if self._group[0] != number:
                file, group, _ = self._groups[number]
                with _open_file(self._files[file]) as parquet_file:
                    table, long_rows = _read_group(parquet_file, group, self._files[file].name)
                    self._group = number, table, long_rows
            row = index - int(self._firsts[number])
            if size := self._group[2].get(row):
                check_record(size, self.place(index))
            count = 1 if self._group[2] else _ROWS  # not together with one that is too long
            start = row // count * count
            first = int(self._firsts[number]) + start
            rows = self._group[1].slice(start, count).to_pylist()
            self._block = first, rows
        return rows[index - first]


def _read_group(
    parquet_file: parquet.ParquetFile, group: int, name: str
) -> tuple[pyarrow.Table, dict[int, int]]:
    """A row group, piece by piece: what repeats one value takes no room in the file.

    The metadata says how long all rows of a group are together, so one that is too long and alone
    in its group is not decoded. Beside others it is: the sizes of pages, which bound it, are in
    the pages alone, and pyarrow does not show them before it has decoded a whole page (2 GiB at
    most by the format, and no more than the group's column).

    Returns:
        The rows, and the bytes of those that are too long, by number; these hold nothing.

    Raises:
        ExpansionError: it holds too much for its size.
    """
    about = parquet_file.metadata.row_group(group)
    columns = [about.column(number) for number in range(about.num_columns)]
    size = sum(column.total_compressed_size for column in columns)
    check_expansion(about.total_byte_size, size, name)
    limit, total = max_record_bytes(), max(1, about.total_byte_size)
    if about.num_rows == 1 and total > limit:
        return parquet_file.schema_arrow.empty_table(), {0: total}
    # a value has at most the bytes of the group, and rows together about those of one that may be
    rows = max(1, min(_ROWS, expansion_limit(size) // total, limit * about.num_rows // total))
    batches, memory, long_rows, first = [], 0, dict[int, int](), 0
    for batch in parquet_file.iter_batches(rows, row_groups=[group]):
        check_expansion(memory + batch.nbytes, size, name)
        if batch.nbytes > limit:
            sizes = [batch.slice(row, 1).nbytes for row in range(batch.num_rows)]
            long_rows |= {first + row: size for row, size in enumerate(sizes) if size > limit}
            kept_rows = [None if size > limit else row for row, size in enumerate(sizes)]
            batch = batch.take(pyarrow.array(kept_rows, pyarrow.int64()))
        batches.append(batch)
        memory += batch.nbytes
        first += batch.num_rows
    return pyarrow.Table.from_batches(batches, parquet_file.schema_arrow), long_rows


@contextlib.contextmanager
def _open_file(file: files.File) -> Iterator[parquet.ParquetFile]:
    with file.open() as raw:
        try:
            with parquet.ParquetFile(raw) as parquet_file:
                yield parquet_file
        except ExpansionError:
            raise
        except (pyarrow.ArrowInvalid, OSError) as error:
            raw.seek(0)
            what = contents.describe(raw.read(contents.HEAD), "parquet")
            reason = what or f"damaged, or no Parquet file: {error}"
            kind = contents.FileError if what else ValueError
            raise kind(f"{file.name}: {reason}") from error


@dataclasses.dataclass(frozen=True)
class ParquetConfig(FilesConfig):
    """Parquet files."""

    kind: Literal["parquet"] = "parquet"

    def open(self, split: str) -> Source:
        """The rows of all files at the source's path."""
        paths = files.find(self, split)
        rows = _ParquetRows(paths)
        return Records(
            self,
            split,
            rows,
            rows.fingerprint,
            rows.place,
            files=len(paths),
            null_is_absent=True,
        )
