"""Documents that `graft prepare` has filtered and tokenized: read as tokens, by row.

The lengths of all documents are known from an index, 8 bytes a document, so that nothing else is
read until a batch needs it.
"""

import dataclasses
import functools
import hashlib
import json
import os
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from etils import epath

from research.config.suggestions import suggestion
from research.data.sources.base import Source, SourceConfig
from research.data.sources.files import BUCKETS
from research.runtime import storage

_POINTER = "prepared.json"
# From so many records on they are read by several threads.
_MANY = 256


@dataclasses.dataclass(frozen=True)
class PreparedConfig(SourceConfig):
    """Documents that `graft prepare` wrote."""

    # The folder that it wrote, on a disk or in a bucket.
    path: str
    # Only documents of these kinds, the names of the sources that were prepared. Empty: all.
    kinds: tuple[str, ...] = ()
    kind: Literal["prepared"] = "prepared"

    def open(self, split: str) -> Source:
        """A split of a prepared folder, or the documents of some kinds in it."""
        return Prepared(self, split)


class Prepared:
    """Random access to the tokens of documents (`research.data.prepared_tokens`)."""

    # Its records are no text of any format: this is what a plan calls them.
    format = "prepared"
    # They were counted when it was prepared.
    bad_lines = 0
    # They were changed before they were prepared.
    note = ""
    # They were accepted when it was prepared.
    acceptance: Mapping[str, Any] = {}

    def __init__(self, config: PreparedConfig, split: str):
        """Reads what is said of the data, and its index.

        Raises:
            ValueError: it lacks the split or a kind, is damaged or in a bucket that cannot be
              opened.
            FileNotFoundError: nothing is prepared there.
        """
        self.name = f"{config.name}:{split}"
        self._split = split
        root = epath.Path(os.path.expanduser(config.path))
        try:
            there = storage.is_file(root / _POINTER)
        except (ImportError, ValueError) as error:
            raise ValueError(
                f"Source {config.name!r}: {root} cannot be opened: {error}. {BUCKETS}"
            ) from error
        if not there:
            raise FileNotFoundError(
                f"Source {config.name!r}: nothing is prepared in {root}, or it is not finished: "
                f"run graft prepare --out {root}."
            )
        try:
            with storage.storage_errors(root):
                self._folder = root / json.loads((root / _POINTER).read_text())["dataset"]
                manifest = json.loads((self._folder / "done.json").read_text())
                content = json.loads((self._folder / "content.json").read_text())
        except storage.StorageError:
            raise
        except (ValueError, KeyError, OSError) as error:
            raise ValueError(
                f"Source {config.name!r}: what was prepared in {root} is damaged ({error}): run "
                "graft prepare again."
            ) from error
        if split not in content["splits"]:
            names = ", ".join(content["splits"])
            raise ValueError(f"Source {config.name!r} has no split {split!r}, only {names}.")
        about = content["splits"][split]
        self._total = about["documents"]
        self._check_files(manifest["files"], about)
        # What the tokens were made with, and how they are stored.
        self.tokenizer = content["tokenizer"]
        self.token_type = np.dtype(content["token_type"])
        self._rows = _choose(config, about["kinds"])
        self._length = sum(stop - start for start, stop in self._rows)
        self.fingerprint = _fingerprint(about["fingerprint"], self._rows)

    def _check_files(self, files: dict[str, Any], about: dict[str, Any]) -> None:
        """Compares the files of the split with what was written.

        Raises:
            ValueError: one is lost, or the index is torn or changed. Records have checksums of
              their own, which are compared when they are read.
        """
        ours = [name for name in files if name.startswith(f"prepared-{self._split}.")]
        with storage.storage_errors(self._folder):
            missing = [name for name in ours if not (self._folder / name).exists()]
        problem = f"{missing[0]} is lost" if missing else ""
        checksums = about.get("index", {})  # data prepared before has none, but sums
        for name in ("tokens", "bytes"):
            index = self._index(name)
            total = sum(kind[name] for kind in about["kinds"])
            if len(index) != self._total:
                problem = problem or "its index is torn"
            elif int(index.sum(dtype=np.int64)) != total or (
                checksums and zlib.crc32(index.astype("<u4").tobytes()) != checksums[name]
            ):
                problem = problem or f"index/{self._split}.{name}.npy is not what was written"
        if problem:
            raise ValueError(
                f"Source {self.name!r}: {self._folder} is damaged, {problem}: run graft prepare "
                "again."
            )

    def _index(self, name: str) -> np.ndarray:
        """[documents of the split] uint32."""
        path = self._folder / "index" / f"{self._split}.{name}.npy"
        try:
            with storage.storage_errors(path), path.open("rb") as file:
                return np.load(file, allow_pickle=False)
        except storage.StorageError:
            raise
        except Exception as error:  # numpy reads its header as Python: errors of many kinds
            raise ValueError(
                f"Source {self.name!r}: {path} is damaged ({error}): run graft prepare again."
            ) from error

    def _of_rows(self, index: np.ndarray) -> np.ndarray:
        return np.concatenate([index[start:stop] for start, stop in self._rows]).astype(np.int64)

    @property
    def lengths(self) -> np.ndarray:
        """[N] int64 tokens of each document, end-of-text counted."""
        return self._of_rows(self._index("tokens"))

    @property
    def byte_lengths(self) -> np.ndarray:
        """[N] int64 UTF-8 bytes of each document's text."""
        return self._of_rows(self._index("bytes"))

    def __len__(self) -> int:
        return self._length

    @functools.cached_property
    def _records(self) -> Any:
        """The raw records of the whole split.

        Raises:
            ValueError: a file is damaged.
        """
        import tensorflow_datasets as tfds  # Here: it takes a second.
        from google.protobuf.json_format import ParseError

        raw = tfds.decode.DeserializeMethod.RAW_BYTES
        try:
            builder = tfds.builder_from_directory(os.fspath(self._folder))
            return builder.as_data_source(split=self._split, deserialize_method=raw)
        except (RuntimeError, ValueError, ParseError) as error:
            raise self._damaged(str(error)) from error

    def _damaged(self, why: str, row: int | None = None) -> ValueError:
        """The error about records that cannot be read; `row` is one of the split."""
        place = self._folder
        if row is not None:
            split = self._records.dataset_info.splits[self._split]
            shard = np.searchsorted(np.cumsum(split.shard_lengths), row, side="right")
            place /= sorted(split.filenames)[int(shard)]
        return ValueError(
            f"Source {self.name!r}: {place} is damaged ({why}): remove {self._folder} and run "
            "graft prepare again."
        )

    def _feature(self, row: int) -> Any:
        """The record of a row of the split.

        Raises:
            ValueError: it is damaged; names the file.
        """
        records = self._records
        try:
            record = records[row]
        except (RuntimeError, ValueError, IndexError) as error:
            raise self._damaged(str(error), row) from error
        # Of a file that was cut short records may be read as nothing.
        if not record:
            raise self._damaged("it was cut short", row)
        return _parse(record)

    def _row(self, index: int) -> int:
        """The row of the split of document `index`."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        index %= len(self)
        for start, stop in self._rows:
            if index < stop - start:
                return start + index
            index -= stop - start
        raise AssertionError("the ranges of rows do not add up")

    def tokens(self, indices: Sequence[int]) -> list[np.ndarray]:
        """The tokens of some documents, end-of-text last.

        Raises:
            ValueError: a record is damaged; names the file.
        """
        rows = [self._row(index) for index in indices]
        # Reading many at once starts threads, which takes longer than to read a few.
        if len(rows) < _MANY:
            return [self._values(self._feature(row)) for row in rows]
        records = self._records
        try:
            raw_records = records.__getitems__(rows)
        except (RuntimeError, ValueError, IndexError) as error:
            for row in rows:  # which of them it is
                self._feature(row)
            raise self._damaged(str(error)) from error
        if not all(raw_records):
            raise self._damaged("it was cut short", rows[list(map(bool, raw_records)).index(False)])
        return [self._values(_parse(record)) for record in raw_records]

    def _values(self, feature: Any) -> np.ndarray:
        return np.frombuffer(
            feature["tokens"].bytes_list.value[0], self.token_type.newbyteorder("<")
        )

    def __getitem__(self, index: int) -> dict[str, Any]:
        feature = self._feature(self._row(index))
        return {
            "id": feature["id"].bytes_list.value[0].decode("utf-8"),
            "kind": feature["kind"].bytes_list.value[0].decode("utf-8"),
            "tokens": self._values(feature),
            "bytes": feature["bytes"].int64_list.value[0],
        }


def _parse(record: bytes) -> Any:
    # Without the decoding of TFDS, which takes several times as long as reading.
    from tensorflow_datasets.proto import tf_example_pb2

    return tf_example_pb2.Example.FromString(record).features.feature


def _choose(config: PreparedConfig, parts: Sequence[dict[str, Any]]) -> list[tuple[int, int]]:
    """First and last row (exclusive) of every kind that is wanted; kinds lie one after another."""
    names = [about["kind"] for about in parts]
    for kind in config.kinds:
        if kind not in names:
            raise ValueError(
                f"Source {config.name!r} has no kind {kind!r}{suggestion(kind, names)}"
            )
    rows, first = [], 0
    for about in parts:
        stop = first + about["documents"]
        if not config.kinds or about["kind"] in config.kinds:
            rows.append((first, stop))
        first = stop
    return rows


def _fingerprint(content: str, rows: Sequence[tuple[int, int]]) -> str:
    return hashlib.sha256(json.dumps([content, rows]).encode()).hexdigest()
