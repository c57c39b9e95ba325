"""Documents that `tools/prepare_data.py` has filtered and tokenised: read as tokens, by row.

The lengths of all documents are known from an index, 8 bytes a document, so that nothing else is
read until a batch needs it.
"""

import functools
import hashlib
import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from research.data.sources.base import Source, SourceConfig, nearest

_POINTER = "prepared.json"
# From so many records on they are read by several threads.
_MANY = 256


def open_prepared(config: SourceConfig, split: str) -> Source:
    """A split of a prepared folder, or the documents of some kinds in it."""
    return Prepared(config, split)


class Prepared:
    """Random access to the tokens of documents; see `research.data.tokens.read_prepared`."""

    # Its records are no text of any format.
    format = "other"
    # They were counted when it was prepared.
    bad_lines = 0

    def __init__(self, config: SourceConfig, split: str):
        """Reads what is said of the data, and its index.

        Raises:
            ValueError: it lacks the split or a kind, is damaged, or the config asks for what only
              text has.
            FileNotFoundError: nothing is prepared there.
        """
        if not config.path:
            raise ValueError(f"Source {config.name!r} of kind 'prepared' needs a `path`.")
        for setting in ("fields", "format", "label_words", "bad_lines"):
            if getattr(config, setting):
                raise ValueError(
                    f"Source {config.name!r} of kind 'prepared' has no {setting}: its documents "
                    "are tokens already. Set it where they were prepared."
                )
        self.name = f"{config.name}:{split}"
        self._split = split
        root = epath.Path(os.path.expanduser(config.path))
        if not (root / _POINTER).exists():
            raise FileNotFoundError(
                f"Source {config.name!r}: nothing is prepared in {root}, or it is not finished: "
                f"run tools/prepare_data.py --out {root}."
            )
        try:
            self._folder = root / json.loads((root / _POINTER).read_text())["dataset"]
            done = json.loads((self._folder / "done.json").read_text())
            content = json.loads((self._folder / "content.json").read_text())
        except (ValueError, KeyError, OSError) as error:
            raise ValueError(
                f"Source {config.name!r}: what was prepared in {root} is damaged ({error}): run "
                "tools/prepare_data.py again."
            ) from error
        if split not in content["splits"]:
            known = ", ".join(content["splits"])
            raise ValueError(f"Source {config.name!r} has no split {split!r}, only {known}.")
        about = content["splits"][split]
        self._total = about["documents"]
        self._check_files(done["files"])
        # What the tokens were made with, and how they are stored.
        self.tokenizer = content["tokenizer"]
        self.token_type = np.dtype(content["token_type"])
        self._rows = _choose(config, about["kinds"])
        self._length = sum(stop - start for start, stop in self._rows)
        self.fingerprint = _fingerprint(about["fingerprint"], self._rows)

    def _check_files(self, files: dict[str, Any]) -> None:
        """Raises ValueError if a file of the split is lost or torn: not of the index's number."""
        ours = [name for name in files if name.startswith(f"prepared-{self._split}.")]
        lost = [name for name in ours if not (self._folder / name).exists()]
        held = len(self._index("tokens"))
        if lost or held != self._total or len(self._index("bytes")) != held:
            what = f"{lost[0]} is lost" if lost else "its index is torn"
            raise ValueError(
                f"Source {self.name!r}: {self._folder} is damaged, {what}: run "
                "tools/prepare_data.py again."
            )

    def _index(self, name: str) -> np.ndarray:
        """[documents of the split] uint32."""
        path = self._folder / "index" / f"{self._split}.{name}.npy"
        try:
            with path.open("rb") as file:
                return np.load(file, allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise ValueError(
                f"Source {self.name!r}: {path} is damaged ({error}): run tools/prepare_data.py "
                "again."
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
        """The raw records of the whole split."""
        import tensorflow_datasets as tfds  # Here: it takes a second.

        builder = tfds.builder_from_directory(os.fspath(self._folder))
        raw = tfds.decode.DeserializeMethod.RAW_BYTES
        return builder.as_data_source(split=self._split, deserialize_method=raw)

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
        """The tokens of some documents, end-of-text last."""
        rows = [self._row(index) for index in indices]
        # Reading many at once starts threads, which takes longer than to read a few.
        many = len(rows) >= _MANY
        records = self._records.__getitems__(rows) if many else map(self._records.__getitem__, rows)
        return [self._values(_parse(record)) for record in records]

    def _values(self, feature: Any) -> np.ndarray:
        return np.frombuffer(
            feature["tokens"].bytes_list.value[0], self.token_type.newbyteorder("<")
        )

    def __getitem__(self, index: int) -> dict[str, Any]:
        feature = _parse(self._records[self._row(index)])
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


def _choose(config: SourceConfig, held: Sequence[dict[str, Any]]) -> list[tuple[int, int]]:
    """First and last row (exclusive) of every kind that is wanted; kinds lie one after another."""
    known = [about["kind"] for about in held]
    for kind in config.kinds:
        if kind not in known:
            raise ValueError(f"Source {config.name!r} has no kind {kind!r}{nearest(kind, known)}")
    rows, first = [], 0
    for about in held:
        stop = first + about["documents"]
        if not config.kinds or about["kind"] in config.kinds:
            rows.append((first, stop))
        first = stop
    return rows


def _fingerprint(content: str, rows: Sequence[tuple[int, int]]) -> str:
    return hashlib.sha256(json.dumps([content, rows]).encode()).hexdigest()
