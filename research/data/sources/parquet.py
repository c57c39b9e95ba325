"""Parquet files, one or several, local or in a bucket."""

import bisect
import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import pyarrow
from pyarrow import compute, parquet

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

# Rows that become Python objects at once, unless they are large.
_ROWS = 1024
# Bytes that a value takes at least as a Python object: its place in a list, or in a struct's dict.
# In Arrow and in the file nulls take none, booleans a bit, and what repeats its number in a table.
_VALUE_BYTES = 8


class _ParquetRows:
    """Rows; the row group that was read last stays in memory.

    A row group is read whole, so rows in order are fast, and rows at random places are exact and
    slow: sources are read in order once, to be tokenized.
    """

    def __init__(self, paths: Sequence[files.File]):
        self._files = list(paths)
        groups = []  # file, group in it, rows
        sizes = []  # [compressed, unpacked] bytes of each
        for number, file in enumerate(paths):
            with _open_file(file) as parquet_file:
                names = parquet_file.schema_arrow.names
                if twice := sorted({name for name in names if names.count(name) > 1}):
                    raise ValueError(
                        f"{file.name}: several columns are named {twice[0]!r}: rename all but one"
                    )
                _check_rows(parquet_file, file.name)
                for group in range(parquet_file.num_row_groups):
                    about = parquet_file.metadata.row_group(group)
                    groups.append((number, group, about.num_rows))
                    sizes.append(_stated_sizes(about))
        self._groups = groups
        self._sizes = np.asarray(sizes, np.int64).reshape(-1, 2)
        for number in range(len(self._files)):
            self._check_file(number)
        counts = [rows for _, _, rows in groups]
        self._firsts = np.cumsum([0, *counts])
        self._group: tuple[int, _Group] = (-1, _Group(pyarrow.table({}), {}, [0]))  # read last
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

    def _check_file(self, number: int) -> None:
        """Raises ExpansionError if all row groups of a file together hold too much for its size:
        each of many small ones may be within the bound."""
        is_own = np.asarray([file == number for file, _, _ in self._groups], bool)
        compressed_bytes, unpacked_bytes = self._sizes[is_own].sum(axis=0)
        check_expansion(int(unpacked_bytes), int(compressed_bytes), self._files[number].name)

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
                    content = _read_group(parquet_file, group, self._files[file].name)
                # the footer may state less than there is
                self._sizes[number, 1] = max(self._sizes[number, 1], content.size)
                self._check_file(file)
                self._group = number, content
            row, content = index - int(self._firsts[number]), self._group[1]
            if size := content.long_rows.get(row):
                check_record(size, self.place(index))
            start, end = content.block(row)
            first = int(self._firsts[number]) + start
            rows = content.table.slice(start, end - start).to_pylist()
            self._block = first, rows
        return rows[index - first]


@dataclasses.dataclass(frozen=True)
class _Group:
    """A row group in memory."""

    # Rows; those that are too long hold nothing.
    table: pyarrow.Table
    # Number of each that is too long -> its bytes.
    long_rows: dict[int, int]
    # The first rows of blocks, which become Python objects at once, and the end.
    starts: list[int]
    # Bytes of all rows, as they were decoded.
    size: int = 0

    def block(self, row: int) -> tuple[int, int]:
        """First row and end of the block that holds a row."""
        number = bisect.bisect_right(self.starts, row)
        return self.starts[number - 1], self.starts[number]


def _read_group(parquet_file: parquet.ParquetFile, group: int, name: str) -> _Group:
    """A row group, piece by piece: what repeats one value takes no room in the file.

    The metadata says how long all rows of a group are together, so one that is too long and alone
    in its group is not decoded. Beside others it is: the sizes of pages, which bound it, are in
    the pages alone, and pyarrow does not show them before it has decoded a whole page (2 GiB at
    most by the format, and no more than the group's column).

    Raises:
        ExpansionError: it holds too much for its size.
      FileError: it has not the rows that its metadata states.
    """
    about = parquet_file.metadata.row_group(group)
    limit, (size, total) = max_record_bytes(), _stated_sizes(about)
    check_expansion(total, size, name)
    if about.num_rows == 1 and total > limit:
        return _Group(parquet_file.schema_arrow.empty_table(), {0: total}, [0, 1])
    # a value has at most the bytes of the group, and rows together about those of one that may be
    rows = max(1, min(_ROWS, expansion_limit(size) // total, limit * about.num_rows // total))
    batches, memory, long_rows, starts = [], 0, dict[int, int](), [0]
    for batch in parquet_file.iter_batches(rows, row_groups=[group]):
        batch_size, first = _size(batch), starts[-1]
        check_expansion(memory + batch_size, size, name)
        end = first + batch.num_rows
        if batch_size > limit:
            sizes = [_size(batch.slice(row, 1)) for row in range(batch.num_rows)]
            long_rows |= {first + row: size for row, size in enumerate(sizes) if size > limit}
            kept_rows = [None if size > limit else row for row, size in enumerate(sizes)]
            batch = batch.take(pyarrow.array(kept_rows, pyarrow.int64()))
            batch_size = sum(size for size in sizes if size <= limit)
            starts += range(first + 1, end)  # each alone
        starts.append(end)
        batches.append(batch)
        memory += batch_size
    if starts[-1] != about.num_rows:
        raise contents.FileError(
            f"{name}: damaged: row group {group} has {starts[-1]} rows, and its metadata states "
            f"{about.num_rows}; write the file again"
        )
    table = pyarrow.Table.from_batches(batches, parquet_file.schema_arrow)
    return _Group(table, long_rows, starts, memory)


def _check_rows(parquet_file: parquet.ParquetFile, name: str) -> None:
    """Raises FileError if the metadata states several numbers of rows: some would never be read."""
    about = parquet_file.metadata
    groups = [about.row_group(number) for number in range(about.num_row_groups)]
    counts = {about.num_rows, sum(group.num_rows for group in groups)}
    for number in range(about.num_columns):
        if not parquet_file.schema.column(number).max_repetition_level:  # one value a row
            counts.add(sum(group.column(number).num_values for group in groups))
    if len(counts) > 1:
        raise contents.FileError(
            f"{name}: damaged: its metadata states {' and '.join(map(str, sorted(counts)))} rows; "
            "write the file again"
        )


def _stated_sizes(about: parquet.RowGroupMetaData) -> tuple[int, int]:
    """Bytes of a row group as the metadata states them: compressed, and unpacked, one at least."""
    columns = [about.column(number) for number in range(about.num_columns)]
    values = sum(column.num_values for column in columns)
    size = sum(column.total_compressed_size for column in columns)
    return size, max(1, about.total_byte_size, values * _VALUE_BYTES)


def _size(rows: pyarrow.RecordBatch) -> int:
    """Bytes that rows take in Arrow, or at least as Python objects, whichever are more."""
    return sum(_array_size(column) for column in rows.columns)


def _array_size(array: pyarrow.Array) -> int:
    size = len(array) * _VALUE_BYTES
    if isinstance(array, pyarrow.ExtensionArray):
        return _array_size(array.storage)
    if isinstance(array, pyarrow.DictionaryArray):
        if isinstance(array.dictionary, pyarrow.StringArray | pyarrow.BinaryArray):
            lengths = compute.binary_length(array.dictionary)  # each row gets a copy of its own
            size += compute.sum(lengths.cast(pyarrow.int64()).take(array.indices)).as_py() or 0
        return size
    if pyarrow.types.is_struct(array.type):
        return size + sum(_array_size(field) for field in array.flatten())
    if pyarrow.types.is_map(array.type):
        item = pyarrow.struct([array.type.key_field, array.type.item_field])
        array = array.cast(pyarrow.list_(item))
    if pyarrow.types.is_nested(array.type):  # lists of any kind
        return size + _array_size(array.flatten())
    return max(size, array.nbytes)


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
            files=paths,
            null_is_absent=True,
        )
