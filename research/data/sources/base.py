"""What a source is, and the part that all kinds share."""

import dataclasses
import difflib
import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """One source and its share of the mixture."""

    # Name in statistics and metrics; for kind "tfds" also the name of the dataset.
    name: str
    # One of `research.data.sources.KINDS`.
    kind: str = "tfds"
    # jsonl, parquet: a file or a pattern (`part-*.jsonl`); text: a folder; each on a disk or in a
    # bucket (`gs://`, `s3://`). tfds: the data folder (None: the default one). `{split}` in it is
    # replaced by the name of the split.
    path: str | None = None
    # Split that is trained on.
    split: str = "train"
    # Share of the rows of every batch, relative to the other sources.
    weight: float = 1.0
    # Wanted field -> field in the file, such as {"text": "content"}; unnamed fields keep theirs.
    fields: Mapping[str, str] = dataclasses.field(default_factory=dict)
    # Of a bank of adapters: the one that this source's rows use and train.
    adapter: str | None = None


class Source(Protocol):
    """Random access to examples. `fingerprint` identifies the content."""

    name: str

    @property
    def fingerprint(self) -> str: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...


def decode_text(value: Any) -> Any:
    """Bytes (as TFDS gives text) and numpy scalars become `str` and Python numbers."""
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, np.ndarray) and value.dtype == object:
        return [decode_text(item) for item in value.tolist()]
    return value.item() if isinstance(value, np.generic) else value


def nearest(word: str, known: Any) -> str:
    """The end of an error about an unknown name."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return (f"; did you mean {near[0]!r}?" if near else ";") + f" Known: {sorted(known)}."


class Records:
    """Common part: the field map, decoding, and errors that name the place."""

    def __init__(
        self,
        config: SourceConfig,
        split: str,
        records: Any,  # len() and [i] -> mapping
        fingerprint: Callable[[], str],
        place: Callable[[int], str],
    ):
        self.name = f"{config.name}:{split}"
        self._fields = dict(config.fields)
        self._records = records
        self._compute_fingerprint = fingerprint
        self._fingerprint: str | None = None
        self._place = place

    @property
    def fingerprint(self) -> str:
        if self._fingerprint is None:
            content = f"{self._compute_fingerprint()} {json.dumps(self._fields, sort_keys=True)}"
            self._fingerprint = hashlib.sha256(content.encode()).hexdigest()
        return self._fingerprint

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self._records[index]
        try:
            example = {key: decode_text(value) for key, value in record.items()}
        except UnicodeDecodeError as error:
            raise ValueError(f"{self._place(index)}: not UTF-8 text: {error}") from error
        for there in self._fields.values():
            if there not in example:
                raise ValueError(
                    f"{self._place(index)}: there is no field {there!r}{nearest(there, example)}"
                )
        renamed = {wanted: example[there] for wanted, there in self._fields.items()}
        return {**{k: v for k, v in example.items() if k not in self._fields.values()}, **renamed}
