"""The last stage: documents that stay are tokenized once, into a TFDS dataset of ArrayRecord files.

    prepared-SPLIT.array_record-00000-of-00012   a record a document: id, kind, tokens, bytes
    dataset_info.json, features.json             for tfds.builder_from_directory
    index/SPLIT.tokens.npy, SPLIT.bytes.npy      [documents] uint32 each: tokens, UTF-8 bytes
    content.json                                 kinds, tokenizer and fingerprints, for the reader

A file holds what stays of one range, in order, so no document is moved. TFDS's own writer for Beam
would send every record through a shuffle, to keep the order that they have already.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import sys
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from research.preparation import documents, stages
from research.preparation.documents import InputError, RowRange, RowRanges
from research.preparation.runner import Runner
from research.preparation.stages import Stage
from research.runtime import files
from research.text import tokenizer as tokenizers
from research.text.token_table import TextEncoder
from research.text.tokenizer import Tokenizer

NAME = "prepared"
_COUNTS = np.dtype([("tokens", "<u4"), ("bytes", "<u4")])
# Characters that are tokenized in one call.
_CHUNK = 2**21


@dataclasses.dataclass(frozen=True)
class Shard:
    """One file of the dataset."""

    range: RowRange
    # Its index among the files of its split, and their number.
    index: int
    count: int
    # How many documents of its split stand before it, and in it.
    first: int
    documents: int

    @property
    def file(self) -> str:
        split = self.range.source_split.split
        return f"{NAME}-{split}.array_record-{self.index:05d}-of-{self.count:05d}"


@dataclasses.dataclass(frozen=True)
class PicklableTokenizer:
    """A tokenizer that can be sent to workers."""

    text: str
    roles: tuple[tuple[str, Any], ...]

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "PicklableTokenizer":
        return cls(tokenizer.to_json(), tuple(tokenizer.roles.items()))

    def tokenizer(self) -> Tokenizer:
        return _unpickle(self)


@functools.lru_cache(maxsize=2)
def _unpickle(picklable: PicklableTokenizer) -> Tokenizer:
    return tokenizers.from_json(picklable.text, "the tokenizer", **dict(picklable.roles))


class Shards(Sequence[Shard]):
    """The files of the dataset; small, however many there are."""

    def __init__(self, ranges: RowRanges, kept_counts: np.ndarray):
        """`kept_counts`: [ranges] documents that stay of each; a range without any has no file."""
        self._ranges = ranges
        self._numbers = np.flatnonzero(kept_counts)
        self._documents = kept_counts[self._numbers]
        splits = [ranges[number].source_split.split for number in self._numbers.tolist()]
        # Where the files of each split start; splits lie one after another.
        split_starts = [i for i in range(len(splits)) if not i or splits[i] != splits[i - 1]]
        self._split_starts = np.asarray([*split_starts, len(splits)])
        self._first_documents = np.concatenate([[0], np.cumsum(self._documents)])

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, place: Any) -> Any:
        if not 0 <= place < len(self):
            raise IndexError(f"file {place} of {len(self)}")
        split = int(np.searchsorted(self._split_starts, place, side="right")) - 1
        start, stop = self._split_starts[split : split + 2].tolist()
        return Shard(
            self._ranges[int(self._numbers[place])],
            place - start,
            stop - start,
            int(self._first_documents[place] - self._first_documents[start]),
            int(self._documents[place]),
        )


def write_dataset(
    runner: Runner,
    stage: Stage,
    tokenizer: Tokenizer,
    removing_stages: Sequence[Stage],
    shards: Shards,
) -> None:
    """Fills the stage's folder with the dataset.

    Args:
      runner: runs the pipeline.
      stage: gets the dataset.
      tokenizer: makes the tokens.
      removing_stages: the stages that remove documents.
      shards: the dataset's files.
    """
    (stage.folder / "index").mkdir(parents=True, exist_ok=True)
    runner.for_each(
        shards,
        functools.partial(
            _write_shard, stage, PicklableTokenizer.of(tokenizer), list(removing_stages)
        ),
    )
    shards_by_split: dict[str, list[Shard]] = {}
    for shard in shards:
        shards_by_split.setdefault(shard.range.source_split.split, []).append(shard)
    content = {
        "tokenizer": tokenizer.fingerprint(),
        "token_type": tokenizer.token_type.name,
        "splits": {
            split: _join_index(stage, split, part) for split, part in shards_by_split.items()
        },
    }
    _write_metadata(stage, shards_by_split)
    stages.write(stage.folder / "content.json", json.dumps(content, indent=1).encode())


def features() -> Any:
    """Features of a record for TFDS; tokens are the bytes of little-endian integers."""
    import tensorflow_datasets as tfds  # Here: it takes a second.

    return tfds.features.FeaturesDict(
        {
            "id": tfds.features.Text(),
            "kind": tfds.features.Text(),
            "tokens": tfds.features.Tensor(shape=(), dtype=np.object_),
            "bytes": tfds.features.Scalar(np.int64),
        }
    )


class _Record(NamedTuple):
    """A document as tokens, and their number."""

    id: str
    kind: str
    # little-endian integers
    tokens: bytes
    text_bytes: int
    token_count: int

    def to_example(self) -> dict[str, Any]:
        """As TFDS encodes it with `features`."""
        size = np.int64(self.text_bytes)
        return {"id": self.id, "kind": self.kind, "tokens": self.tokens, "bytes": size}


def _write_shard(
    stage: Stage, tokenizer: PicklableTokenizer, removing_stages: Sequence[Stage], shard: Shard
) -> None:
    """Tokenizes what stays of a range; writes records, and beside them their counts and digest."""
    from tensorflow_datasets.core import example_serializer, file_adapters

    record_features = features()
    serializer = example_serializer.ExampleSerializer(record_features.get_serialized_info())
    counts: list[tuple[int, int]] = []
    total = 0

    def records() -> Iterator[tuple[None, bytes]]:
        nonlocal total
        for record in _records(tokenizer.tokenizer(), removing_stages, shard.range):
            place = [shard.first + len(counts), record.kind, record.id]
            content = json.dumps(place).encode() + record.tokens
            total += int.from_bytes(hashlib.sha256(content).digest())
            counts.append((record.token_count, record.text_bytes))
            example = record_features.encode_example(record.to_example())
            example_proto = serializer.get_tf_example(example)
            # Maps have no order of their own: the same document shall give the same bytes.
            yield None, example_proto.SerializeToString(deterministic=True)

    with tempfile.TemporaryDirectory() as folder:
        # The library writes only to a disk.
        local_file = Path(folder) / shard.file
        try:
            file_adapters.ArrayRecordFileAdapter.write_examples(local_file, records())
        except RuntimeError as error:
            if str(local_file) not in str(error):
                raise
            raise OSError(str(error)) from error  # so the writer says that a disk is full
        target = stage.folder / shard.file
        files.atomic_copy(local_file, target)
    number = shard.range.number
    stages.save(stage.folder / "index" / f"{number:06d}.npy", np.asarray(counts, _COUNTS))
    stages.write(stage.folder / "index" / f"{number:06d}.sum", f"{total:x}".encode())


def _records(
    tokenizer: Tokenizer, removing_stages: Sequence[Stage], row_range: RowRange
) -> Iterator[_Record]:
    """Records of the documents that stay; a chunk of their text is in memory."""
    encoder = TextEncoder(tokenizer, {"text": True})
    names: list[str] = []
    source = documents.open_cached(row_range.source_split)
    dtype = tokenizer.token_type.newbyteorder("<")
    pending = 0

    def flush() -> Iterator[_Record]:
        try:
            encodings = encoder.take()["text"]
        except ValueError as error:
            where = f"{source.name}, rows {row_range.start} to {row_range.stop - 1}"
            raise InputError(f"{where}, {error}") from error
        for name, ids, size in zip(names, encodings.values, encodings.bytes, strict=True):
            tokens = np.asarray(ids, dtype).tobytes()
            yield _Record(name, row_range.source_split.kind, tokens, int(size), len(ids))
        names.clear()

    is_removed = stages.removed_mask(removing_stages, row_range.number, len(row_range))
    for place, example in documents.examples(row_range, is_removed):
        row = row_range.start + place
        names.append(str(example.get("id", row)))
        pending += encoder.add(example, f"{source.name}, row {row}")
        if pending >= _CHUNK:
            yield from flush()
            pending = 0
    yield from flush()


def _join_index(stage: Stage, split: str, shards: Sequence[Shard]) -> dict[str, Any]:
    """Joins the counts beside the files of a split to one array; returns what is in the split."""
    folder = stage.folder / "index"
    kinds: dict[str, dict[str, Any]] = {}
    documents = sum(shard.documents for shard in shards)
    total, checksums = 0, {"tokens": 0, "bytes": 0}
    with contextlib.ExitStack() as open_files:
        files = {}
        for name in ("tokens", "bytes"):
            files[name] = open_files.enter_context((folder / f"{split}.{name}.npy").open("wb"))
            header = {"descr": "<u4", "fortran_order": False, "shape": (documents,)}
            np.lib.format.write_array_header_1_0(files[name], header)
        for shard in shards:
            counts = stages.load(folder / f"{shard.range.number:06d}.npy")
            kind = shard.range.source_split.kind
            sums = kinds.setdefault(kind, {"kind": kind, "documents": 0, "tokens": 0, "bytes": 0})
            sums["documents"] += len(counts)
            for name, file in files.items():
                content = counts[name].tobytes()
                file.write(content)
                checksums[name] = zlib.crc32(content, checksums[name])
                sums[name] += int(counts[name].sum(dtype=np.int64))
            total += int((folder / f"{shard.range.number:06d}.sum").read_text(), 16)
    for shard in shards:
        (folder / f"{shard.range.number:06d}.npy").unlink()
        (folder / f"{shard.range.number:06d}.sum").unlink()
    return {
        "documents": documents,
        # Identifies names and tokens of the documents in their order: a sum of hashes of each with
        # its place, so that it does not matter in which files they lie.
        "fingerprint": hashlib.sha256(f"{total % 2**256:x}".encode()).hexdigest(),
        "kinds": list(kinds.values()),
        # CRC-32 of the numbers in the index
        "index": checksums,
    }


def _write_metadata(stage: Stage, shards_by_split: Mapping[str, Sequence[Shard]]) -> None:
    """Writes the metadata that make the folder a dataset of TFDS."""
    import tensorflow_datasets as tfds

    infos = [
        tfds.core.SplitInfo(
            name=split,
            shard_lengths=[shard.documents for shard in shards],
            num_bytes=sum((stage.folder / shard.file).stat().length for shard in shards),
        )
        for split, shards in shards_by_split.items()
    ]
    with contextlib.redirect_stdout(sys.stderr):  # TFDS prints; stdout is the caller's
        tfds.folder_dataset.write_metadata(
            data_dir=stage.folder,
            features=features(),
            split_infos=infos,
            filename_template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
            check_data=False,
            description="Documents as tokens, prepared by Graft.",
        )
