"""The ledger of a study: one Parquet file of one row for each trial that has run.

A file is named after the trial's address and the hash of its own bytes, and appears whole: a
damaged one is found by its name and its trial runs again, and two ledgers are merged by copying one
folder into the other. A ledger may lie in a bucket. DuckDB reads all of it at once:

    SELECT form, avg(heldout_loss) FROM 'runs/studies/NAME/rows/*.parquet' GROUP BY form
"""

from __future__ import annotations

import collections
import hashlib
import io
import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow
from etils import epath
from pyarrow import parquet

from research.runtime import files, storage

FINISHED, DIVERGED, FAILED = "finished", "diverged", "failed"
_NAME = re.compile(r"([0-9a-f]{20})\.([0-9a-f]{16})\.parquet")
Row = Mapping[str, Any]


class Ledger:
    """Rows of trials, by address.

    Attributes:
      damaged: files that are not what their names say; their rows do not count.
    """

    def __init__(self, folder: str | Path, committed: Path | None = None):
        """Opens the ledger of a folder, which need not exist.

        Args:
          folder: `rows/` of it holds the rows.
          committed: one Parquet file with rows of earlier runs, kept with the study; `read` raises
            ValueError where it is damaged.
        """
        self._rows_folder: epath.Path = storage.absolute(folder) / "rows"
        self._committed = committed
        self._contents: dict[str, dict[str, Any]] = {}
        self.damaged: list[str] = []
        self._removed: set[str] = set()

    def read(self) -> dict[str, Row]:
        """Address -> row.

        Where a trial has run twice, a row that finished counts, and of two such the one whose file
        comes first by name: everybody who has both files reads the same.
        """
        self.damaged = []
        rows: dict[str, Row] = {}
        for name in sorted(self._names()):
            match = _NAME.fullmatch(name)
            if match is None:  # somebody else's
                continue
            if name not in self._contents:
                try:
                    content = (self._rows_folder / name).read_bytes()
                except FileNotFoundError:  # removed meanwhile
                    continue
                if _digest(content) != match[2]:
                    self.damaged.append(name)
                    continue
                row = parquet.read_table(io.BytesIO(content)).to_pylist()[0]
                if row["address"] != match[1]:  # another trial's, renamed
                    self.damaged.append(name)
                    continue
                self._contents[name] = row
            row = self._contents[name]
            if match[1] not in rows or _rank(row) < _rank(rows[match[1]]):
                rows[match[1]] = row
        if self._committed is not None and self._committed.exists():
            for row in _read_committed(self._committed):
                if row["address"] in self._removed:
                    continue
                content = {name: value for name, value in row.items() if value is not None}
                rows.setdefault(row["address"], content)
        return rows

    def write(self, row: Row) -> None:
        """Adds the row of a trial, which has an `address`; damaged rows of it go."""
        content = to_parquet([row])
        address = row["address"]
        name = f"{address}.{_digest(content)}.parquet"
        files.atomic_write(self._rows_folder / name, content)
        # sound ones stay: two processes that ran one trial would remove each other's
        for damaged in [name for name in self.damaged if name.startswith(f"{address}.")]:
            (self._rows_folder / damaged).unlink(missing_ok=True)

    def remove(self, address: str) -> None:
        """Removes the rows of a trial, damaged ones too; for this object also the kept one."""
        self._removed.add(address)
        for name in self._names():
            if name.startswith(f"{address}."):
                (self._rows_folder / name).unlink(missing_ok=True)

    def remove_failed(self) -> None:
        """Removes the rows of all trials that failed."""
        for address, row in self.read().items():
            if row["status"] == FAILED:
                self.remove(address)

    def _names(self) -> list[str]:
        return [name for name in storage.names_in(self._rows_folder) if name.endswith(".parquet")]


def _read_committed(path: Path) -> list[dict[str, Any]]:
    """The rows of a ledger that was committed.

    Raises:
      ValueError: it is damaged, or has two rows of one trial.
    """
    try:
        rows = parquet.read_table(path).to_pylist()
        counts = collections.Counter(row["address"] for row in rows)
    except (pyarrow.ArrowException, KeyError) as error:
        raise ValueError(
            f"{path} is no ledger of a study ({type(error).__name__}: {error}): restore it, or "
            "remove it, and its trials run again"
        ) from error
    if twice := [address for address, count in counts.items() if count > 1]:
        raise ValueError(f"{path} has two rows of the trial {twice[0]}: restore it")
    return rows


def to_parquet(rows: Iterable[Row]) -> bytes:
    """Rows as the bytes of a Parquet file: the same bytes from the same rows.

    Numbers that are not finite become null; mappings become JSON.
    """
    plain = [{name: _storable(value) for name, value in sorted(row.items())} for row in rows]
    names = sorted({name for row in plain for name in row})
    table = pyarrow.Table.from_pylist([{name: row.get(name) for name in names} for row in plain])
    buffer = io.BytesIO()
    parquet.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def _storable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return json.dumps(value, sort_keys=True)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _rank(row: Row) -> int:
    return (FINISHED, DIVERGED, FAILED).index(row["status"])


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
