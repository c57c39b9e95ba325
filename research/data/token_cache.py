"""Tokenises a source once, into a folder that later runs map into memory.

A folder holds, for every field, one flat token array and the offsets of its examples. Its name is
the hash of everything that its content depends on, so it is never out of date.
"""

import dataclasses
import hashlib
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from tqdm import tqdm

from research.data.sources import Source
from research.data.sources.files import cache_folder
from research.data.sources.prepared import Prepared
from research.objectives.base import Encoded, Encoder
from research.text.tokenizer import Tokenizer

# Part of every key: raise it when the files or their meaning change.
SCHEMA = 1
# Characters that are tokenised in one call; bounds memory, and is enough to use every core.
_CHUNK = 2**21


def default_cache() -> Path:
    """Where tokenised sources are kept: `$GRAFT_CACHE/tokens`, or ~/.cache/graft/tokens."""
    return cache_folder("tokens")


@dataclasses.dataclass(frozen=True)
class Ragged:
    """Sequences of different lengths in one flat array: `values [T]`, `offsets [N + 1]`."""

    values: np.ndarray
    offsets: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """[N] int64."""
        return np.diff(self.offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        return self.values[self.offsets[index] : self.offsets[index + 1]]

    def stretches(self, starts: np.ndarray, stops: np.ndarray) -> list[np.ndarray]:
        """`values[start:stop]` for each pair, none beyond its document."""
        if isinstance(self.values, RecordTokens):
            return self.values.stretches(starts, stops)
        pairs = zip(starts.tolist(), stops.tolist(), strict=True)
        return [self.values[start:stop] for start, stop in pairs]


@dataclasses.dataclass(frozen=True)
class TokenTable:
    """The tokens of every example of a source, by field."""

    name: str
    # Field -> its tokens; fields that are trained on end with end-of-text.
    tokens: Mapping[str, Ragged]
    # Field -> [N] int64 UTF-8 bytes of the text of each example.
    bytes: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        return len(next(iter(self.bytes.values())))

    def __getitem__(self, field: str) -> Ragged:
        return self.tokens[field]


class TextEncoder:
    """Tokens of text fields, each tokenised apart."""

    def __init__(self, tokenizer: Tokenizer, fields: Mapping[str, bool]):
        """`fields`: field -> whether end-of-text is appended to it."""
        self._tokenizer = tokenizer
        self._ends = dict(fields)
        self._texts: dict[str, list[str]] = {field: [] for field in fields}
        names = sorted(fields)
        self.types = dict.fromkeys(names, tokenizer.token_type)
        self.key = {
            "tokenizer": tokenizer.fingerprint(),
            "fields": {name: bool(fields[name]) for name in names},
        }

    def add(self, example: Mapping[str, Any], where: str) -> int:
        """Takes the text of every field."""
        texts = [(field, field_text(example, field, where)) for field in self._texts]
        for field, text in texts:
            self._texts[field].append(text)
        return sum(len(text) for _, text in texts)

    def take(self) -> dict[str, Encoded]:
        """The tokens of what was added."""
        result = {}
        for field, texts in self._texts.items():
            try:
                encoded = self._tokenizer.encode_batch(texts)
            except ValueError as error:
                raise ValueError(f"field {field!r}: {error}") from error
            if self._ends[field]:
                for ids in encoded:
                    ids.append(self._tokenizer.end_id)
            sizes = [len(text.encode("utf-8", "surrogatepass")) for text in texts]
            result[field] = Encoded(encoded, sizes)
            texts.clear()
        return result


def tokenise(
    source: Source,
    tokenizer: Tokenizer,
    fields: Mapping[str, bool],
    cache: str | os.PathLike[str],
) -> TokenTable:
    """The tokens of the text fields of `source`; see `encode`.

    Args:
      source: examples with the text of every field.
      tokenizer: its fingerprint is part of the cache's key.
      fields: field -> whether end-of-text is appended to it.
      cache: as for `encode`.
    """
    return encode(source, TextEncoder(tokenizer, fields), cache)


def encode(source: Source, encoder: Encoder, cache: str | os.PathLike[str]) -> TokenTable:
    """What `encoder` makes of `source`, from `cache` if it has been made before.

    Args:
      source: examples.
      encoder: its key is part of the cache's key.
      cache: folder for the results of all sources. Written whole or not at all: several
        processes may tokenise the same source into it at the same time.

    Raises:
        ValueError: an example lacks a field, or it is not text (names source and row), or the
          cached folder is damaged.
    """
    content = {"schema": SCHEMA, "source": source.fingerprint, **encoder.key}
    key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]
    folder = Path(cache) / key
    if not folder.is_dir():
        Path(cache).mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=cache))
        try:
            _write(partial, source, encoder)
            about = {"name": source.name, "examples": len(source), **content}
            (partial / "about.json").write_text(json.dumps(about, indent=1), encoding="utf-8")
            try:
                partial.rename(folder)
            except OSError:
                if not folder.is_dir():  # Otherwise another process was faster: use its work.
                    raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return _read(folder, source.name, sorted(encoder.types))


def _read(folder: Path, name: str, fields: Sequence[str]) -> TokenTable:
    tokens, sizes = {}, {}
    try:
        for field in fields:
            # Of numpy's own type, whose slices are made several times as fast.
            values = np.load(folder / f"{field}.tokens.npy", mmap_mode="r").view(np.ndarray)
            offsets = np.load(folder / f"{field}.offsets.npy")
            sizes[field] = np.load(folder / f"{field}.bytes.npy")
            if len(values) != offsets[-1] or len(sizes[field]) != len(offsets) - 1:
                raise ValueError("its arrays do not fit each other")
            tokens[field] = Ragged(values, offsets)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(
            f"The tokenised cache of {name} is damaged ({error}); remove the folder {folder} "
            "and it is made again."
        ) from error
    return TokenTable(name, tokens, sizes)


def _write(folder: Path, source: Source, encoder: Encoder) -> None:
    """Streams all examples to `folder`; holds one chunk of text in memory."""
    lengths: dict[str, list[np.ndarray]] = {field: [] for field in encoder.types}
    sizes: dict[str, list[int]] = {field: [] for field in encoder.types}
    files = {field: (folder / f"{field}.tokens.npy").open("wb") for field in encoder.types}
    pending, first = 0, 0

    def flush(until: int) -> None:
        try:
            taken = encoder.take()
        except ValueError as error:
            raise ValueError(f"{source.name}, rows {first} to {until - 1}, {error}") from error
        for field, dtype in encoder.types.items():
            encoded = taken[field]
            counts = np.asarray([len(ids) for ids in encoded.values], np.int64)
            flat = itertools.chain.from_iterable(encoded.values)
            files[field].write(np.fromiter(flat, dtype, int(counts.sum())).tobytes())
            lengths[field].append(counts)
            sizes[field].extend(encoded.bytes)

    try:
        for field, dtype in encoder.types.items():
            _header(files[field], dtype, 0)
        rows = range(len(source))
        for row in tqdm(rows, f"tokenise {source.name}", unit="row", leave=False, disable=None):
            pending += encoder.add(source[row], f"{source.name}, row {row}")
            if pending >= _CHUNK:
                flush(row + 1)
                pending, first = 0, row + 1
        flush(len(source))
        for field, dtype in encoder.types.items():
            counts = np.concatenate([np.zeros(1, np.int64), *lengths[field]])
            offsets = np.cumsum(counts)
            _header(files[field], dtype, int(offsets[-1]))
            np.save(folder / f"{field}.offsets.npy", offsets)
            np.save(folder / f"{field}.bytes.npy", np.asarray(sizes[field], np.int64))
    finally:
        for file in files.values():
            file.close()


def _header(file: BinaryIO, dtype: np.dtype, count: int) -> None:
    """Writes the .npy header in place: first without a count, at the end with it."""
    file.seek(0)
    about = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False}
    # numpy pads the header so that the first axis can grow; its length does not change.
    np.lib.format.write_array_header_1_0(file, {**about, "shape": (count,)})


def field_text(example: Mapping[str, Any], field: str, where: str) -> str:
    """The text of one field; ValueError says `where` there is none."""
    if field not in example:
        raise ValueError(
            f"{where}: there is no field {field!r}, only {sorted(example)}. Name the right one in "
            f"the source's `fields`, such as fields={{{field!r}: 'content'}} (numbers as labels: "
            "give `label_words`)."
        )
    if not isinstance(example[field], str):
        raise ValueError(
            f"{where}: field {field!r} must be text, not {type(example[field]).__name__}."
        )
    return example[field]


def text_of(source: Source, row: int, field: str) -> str:
    """The text of one field; ValueError names source, row and field where there is none."""
    return field_text(source[row], field, f"{source.name}, row {row}")


class RecordTokens:
    """[T] tokens of all documents of a prepared source, each read when it is asked for.

    Stands where `Ragged` has a flat array: an integer, a slice, or an array of places (not below 0)
    gives what it would give there. The document that was read last is kept, for pieces in a row.
    """

    def __init__(self, source: Prepared, offsets: np.ndarray):
        """`offsets` [N + 1]: where each document's tokens start."""
        self._source = source
        self._offsets = offsets
        self._last: tuple[int, np.ndarray] = (-1, np.zeros(0, source.token_type))
        self.dtype = source.token_type

    def __len__(self) -> int:
        return int(self._offsets[-1])

    def __getitem__(self, places: int | slice | np.ndarray) -> np.ndarray:
        if isinstance(places, slice):
            start, stop, step = places.indices(len(self))
            return self._between(start, max(start, stop))[::step]
        wanted = np.asarray(places)
        if not wanted.ndim:
            place = range(len(self))[int(wanted)]
            return self._between(place, place + 1)[0]
        found = np.zeros(wanted.shape, self.dtype)
        documents = self._document(wanted)
        for document in np.unique(documents):
            here = documents == document
            found[here] = self._read(int(document))[wanted[here] - self._offsets[document]]
        return found

    def stretches(self, starts: np.ndarray, stops: np.ndarray) -> list[np.ndarray]:
        """The tokens start .. stop - 1 of each pair, each in one document, read in one go."""
        documents, which = np.unique(self._document(starts), return_inverse=True)
        read = self._source.tokens(documents.tolist())
        first = self._offsets[documents][which]
        pairs = zip(
            which.tolist(), (starts - first).tolist(), (stops - first).tolist(), strict=True
        )
        return [read[number][start:stop] for number, start, stop in pairs]

    def _document(self, places: np.ndarray | int) -> np.ndarray:
        return np.searchsorted(self._offsets, places, side="right") - 1

    def _between(self, start: int, stop: int) -> np.ndarray:
        if start == stop:
            return np.zeros(0, self.dtype)
        first, last = int(self._document(start)), int(self._document(stop - 1))
        before = int(self._offsets[first])
        if first == last:
            return self._read(first)[start - before : stop - before]
        tokens = np.concatenate(self._source.tokens(range(first, last + 1)))
        return tokens[start - before : stop - before]

    def _read(self, document: int) -> np.ndarray:
        number, tokens = self._last
        if number != document:
            (tokens,) = self._source.tokens([document])
            if len(tokens) != self._offsets[document + 1] - self._offsets[document]:
                raise ValueError(
                    f"{self._source.name}, row {document}: {len(tokens)} tokens, but the index "
                    "says another number: run graft prepare again."
                )
            self._last = number, tokens = document, tokens
        return tokens


def read_prepared(source: Prepared, tokenizer: Tokenizer, fields: Mapping[str, bool]) -> TokenTable:
    """The tokens of a prepared source as they are; memory: 16 bytes a document.

    Args:
      source: documents.
      tokenizer: the model's.
      fields: as for `tokenise`.

    Raises:
        ValueError: the tokens are another tokenizer's, or the objective reads more than documents.
    """
    if dict(fields) != {"text": True}:
        raise ValueError(
            f"Source {source.name!r} is prepared: it has documents that end with end-of-text, not "
            f"the fields {sorted(fields)}. Train on the labelled records themselves."
        )
    if source.tokenizer != tokenizer.fingerprint():
        raise ValueError(
            f"Source {source.name!r} was prepared with another tokenizer "
            f"({source.tokenizer[:16]}) than the model's ({tokenizer.fingerprint()[:16]}): its "
            "tokens would be other words. Prepare it again with the model's tokenizer."
        )
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(source.lengths)])
    # It gives every stretch that objectives ask an array for.
    tokens = Ragged(cast(np.ndarray, RecordTokens(source, offsets)), offsets)
    return TokenTable(source.name, {"text": tokens}, {"text": source.byte_lengths})
