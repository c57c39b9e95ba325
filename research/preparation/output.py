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
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from research.preparation import documents, stages
from research.preparation.documents import InputError, Range, Ranges
from research.preparation.running import Runner
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

    range: Range
    # Its place among the files of its split, and their number.
    index: int
    count: int
    # How many documents of its split stand before it, and in it.
    first: int
    documents: int

    @property
    def file(self) -> str:
        split = self.range.part.split
        return f"{NAME}-{split}.array_record-{self.index:05d}-of-{self.count:05d}"


@dataclasses.dataclass(frozen=True)
class Words:
    """A tokenizer that can be sent to workers."""

    text: str
    roles: tuple[tuple[str, Any], ...]

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "Words":
        return cls(tokenizer.to_json(), tuple(tokenizer.roles.items()))

    def tokenizer(self) -> Tokenizer:
        return _tokenizer(self)


@functools.lru_cache(maxsize=2)
def _tokenizer(words: Words) -> Tokenizer:
    return tokenizers.from_json(words.text, "the tokenizer", **dict(words.roles))


class Shards(Sequence[Shard]):
    """The files of the dataset; small, however many there are."""

    def __init__(self, ranges: Ranges, kept: np.ndarray):
        """`kept`: [ranges] documents that stay of each; a range of which none stays has no file."""
        self._ranges = ranges
        self._numbers = np.flatnonzero(kept)
        self._documents = kept[self._numbers]
        splits = [ranges[number].part.split for number in self._numbers.tolist()]
        # Where the files of each split start; splits lie one after another.
        opens = [i for i in range(len(splits)) if not i or splits[i] != splits[i - 1]]
        self._opens = np.asarray([*opens, len(splits)])
        self._before = np.concatenate([[0], np.cumsum(self._documents)])

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, place: Any) -> Any:
        if not 0 <= place < len(self):
            raise IndexError(f"file {place} of {len(self)}")
        split = int(np.searchsorted(self._opens, place, side="right")) - 1
        start, stop = self._opens[split : split + 2].tolist()
        return Shard(
            self._ranges[int(self._numbers[place])],
            place - start,
            stop - start,
            int(self._before[place] - self._before[start]),
            int(self._documents[place]),
        )


def write(
    run: Runner,
    stage: Stage,
    tokenizer: Tokenizer,
    before: Sequence[Stage],
    chosen: Shards,
) -> None:
    """Fills the stage's folder with the dataset.

    Args:
      run: runs the pipeline.
      stage: gets the dataset.
      tokenizer: makes the tokens.
      before: the stages that remove documents.
      chosen: its files.
    """
    (stage.folder / "index").mkdir(parents=True, exist_ok=True)
    run.each(
        chosen,
        functools.partial(_write_shard, stage, Words.of(tokenizer), list(before)),
    )
    splits: dict[str, list[Shard]] = {}
    for shard in chosen:
        splits.setdefault(shard.range.part.split, []).append(shard)
    content = {
        "tokenizer": tokenizer.fingerprint(),
        "token_type": tokenizer.token_type.name,
        "splits": {split: _join_index(stage, split, parts) for split, parts in splits.items()},
    }
    _write_metadata(stage, splits)
    stages.write(stage.folder / "content.json", json.dumps(content, indent=1).encode())


def features() -> Any:
    """What TFDS knows of a record; tokens are the bytes of little-endian integers."""
    import tensorflow_datasets as tfds  # Here: it takes a second.

    return tfds.features.FeaturesDict(
        {
            "id": tfds.features.Text(),
            "kind": tfds.features.Text(),
            "tokens": tfds.features.Tensor(shape=(), dtype=np.object_),
            "bytes": tfds.features.Scalar(np.int64),
        }
    )


def _write_shard(stage: Stage, words: Words, before: Sequence[Stage], shard: Shard) -> None:
    """Tokenizes what stays of a range: the records, and beside them their counts and digest."""
    from tensorflow_datasets.core import example_serializer, file_adapters

    form = features()
    serializer = example_serializer.ExampleSerializer(form.get_serialized_info())
    counts: list[tuple[int, int]] = []
    total = 0

    def records() -> Iterator[tuple[None, bytes]]:
        nonlocal total
        for example in _examples(words.tokenizer(), before, shard.range):
            place = [shard.first + len(counts), example["kind"], example["id"]]
            content = json.dumps(place).encode() + example["tokens"]
            total += int.from_bytes(hashlib.sha256(content).digest())
            counts.append((example.pop("count"), int(example["bytes"])))
            encoded = serializer.get_tf_example(form.encode_example(example))
            # Maps have no order of their own: the same document shall give the same bytes.
            yield None, encoded.SerializeToString(deterministic=True)

    with tempfile.TemporaryDirectory() as folder:
        # The library writes only to a disk.
        made = Path(folder) / shard.file
        try:
            file_adapters.ArrayRecordFileAdapter.write_examples(made, records())
        except RuntimeError as error:
            if str(made) not in str(error):
                raise
            raise OSError(str(error)) from error  # so the writer says that a disk is full
        target = stage.folder / shard.file
        files.atomic_copy(made, target)
    number = shard.range.number
    stages.save(stage.folder / "index" / f"{number:06d}.npy", np.asarray(counts, _COUNTS))
    stages.write(stage.folder / "index" / f"{number:06d}.sum", f"{total:x}".encode())


def _examples(
    tokenizer: Tokenizer, before: Sequence[Stage], chosen: Range
) -> Iterator[dict[str, Any]]:
    """Records of the documents that stay; a chunk of their text is in memory."""
    encoder = TextEncoder(tokenizer, {"text": True})
    names: list[str] = []
    source = documents.opened(chosen.part)
    dtype = tokenizer.token_type.newbyteorder("<")
    pending = 0

    def flush() -> Iterator[dict[str, Any]]:
        try:
            encoded = encoder.take()["text"]
        except ValueError as error:
            where = f"{source.name}, rows {chosen.start} to {chosen.stop - 1}"
            raise InputError(f"{where}, {error}") from error
        for name, ids, size in zip(names, encoded.values, encoded.bytes, strict=True):
            tokens = np.asarray(ids, dtype).tobytes()
            yield {
                "id": name,
                "kind": chosen.part.kind,
                "tokens": tokens,
                "bytes": np.int64(size),
                "count": len(ids),
            }
        names.clear()

    gone = stages.removed(before, chosen.number, len(chosen))
    for place, example in documents.examples(chosen, gone):
        row = chosen.start + place
        names.append(str(example.get("id", row)))
        pending += encoder.add(example, f"{source.name}, row {row}")
        if pending >= _CHUNK:
            yield from flush()
            pending = 0
    yield from flush()


def _join_index(stage: Stage, split: str, parts: Sequence[Shard]) -> dict[str, Any]:
    """One array a split of what its files' sides hold, which then go; what is in the split."""
    folder = stage.folder / "index"
    kinds: dict[str, dict[str, Any]] = {}
    documents = sum(part.documents for part in parts)
    total = 0
    with contextlib.ExitStack() as opened:
        files = {}
        for name in ("tokens", "bytes"):
            files[name] = opened.enter_context((folder / f"{split}.{name}.npy").open("wb"))
            about = {"descr": "<u4", "fortran_order": False, "shape": (documents,)}
            np.lib.format.write_array_header_1_0(files[name], about)
        for part in parts:
            side = folder / f"{part.range.number:06d}.npy"
            counts = stages.load(side)
            kind = part.range.part.kind
            sums = kinds.setdefault(kind, {"kind": kind, "documents": 0, "tokens": 0, "bytes": 0})
            sums["documents"] += len(counts)
            for name, file in files.items():
                file.write(counts[name].tobytes())
                sums[name] += int(counts[name].sum(dtype=np.int64))
            total += int((folder / f"{part.range.number:06d}.sum").read_text(), 16)
    for part in parts:
        (folder / f"{part.range.number:06d}.npy").unlink()
        (folder / f"{part.range.number:06d}.sum").unlink()
    return {
        "documents": documents,
        # Identifies names and tokens of the documents in their order: a sum of hashes of each with
        # its place, so that it does not matter in which files they lie.
        "fingerprint": hashlib.sha256(f"{total % 2**256:x}".encode()).hexdigest(),
        "kinds": list(kinds.values()),
    }


def _write_metadata(stage: Stage, splits: Mapping[str, Sequence[Shard]]) -> None:
    """What makes the folder a dataset of TFDS."""
    import tensorflow_datasets as tfds

    infos = [
        tfds.core.SplitInfo(
            name=split,
            shard_lengths=[part.documents for part in parts],
            num_bytes=sum((stage.folder / part.file).stat().length for part in parts),
        )
        for split, parts in splits.items()
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
