"""The tokens of a source, made once, in a folder that later runs map into memory.

A folder holds, for every field, one flat token array and the offsets of its examples. Its name is
the hash of everything that its content depends on, so it is never out of date, and of what decides
which records are accepted, so that none is used that would be refused now. The checksums of its
files are compared when it is opened.
"""

import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from tqdm import tqdm

from research.data.cached_folder import cached_folder, damaged
from research.data.sources import Source
from research.data.sources.files import cache_folder, shared_cache
from research.data.sources.records import Records
from research.text.token_table import Encoder, Ragged, TextEncoder, TokenTable, field_text
from research.text.tokenizer import Tokenizer

# Part of every key: raise it when the files or their meaning change.
SCHEMA = 1
# Characters that are tokenized in one call; bounds memory, and is enough to use every core.
_CHUNK = 2**21


def default_cache() -> Path:
    """Folder of tokenized sources: `$GRAFT_CACHE/tokens`, or ~/.cache/graft/tokens."""
    return cache_folder("tokens")


def tokenize(
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
        processes may tokenize the same source into it at the same time.

    Raises:
        ValueError: an example lacks a field, or it is not text (names source and row), the source
          changed while it was read, or the cached folder is damaged.
        OSError: the cache's disk is full, or the cache is another user's.
    """
    content = {
        "schema": SCHEMA,
        "source": source.fingerprint,
        "acceptance": source.acceptance,
        **encoder.key,
    }
    about = {"name": source.name, "examples": len(source)}
    title = f"tokenized cache of {source.name}"

    def write(partial: Path) -> None:
        _write(partial, source, encoder)
        if isinstance(source, Records):  # prepared ones have checksums
            source.check_unchanged()

    folder = cached_folder(cache, content, title, write, about)
    with shared_cache(Path(cache)):
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
    except PermissionError:
        raise
    except (ValueError, OSError, EOFError) as error:
        raise damaged(folder, f"tokenized cache of {name}", str(error)) from error
    return TokenTable(name, tokens, sizes)


def _write(folder: Path, source: Source, encoder: Encoder) -> None:
    """Streams all examples to `folder`; holds one chunk of text in memory."""
    lengths: dict[str, list[np.ndarray]] = {field: [] for field in encoder.types}
    sizes: dict[str, list[int]] = {field: [] for field in encoder.types}
    files = {field: (folder / f"{field}.tokens.npy").open("wb") for field in encoder.types}
    pending, first = 0, 0

    def flush(until: int) -> None:
        try:
            fields = encoder.take()
        except ValueError as error:
            raise ValueError(f"{source.name}, rows {first} to {until - 1}, {error}") from error
        for field, dtype in encoder.types.items():
            encoded = fields[field]
            counts = np.asarray([len(ids) for ids in encoded.values], np.int64)
            flat = itertools.chain.from_iterable(encoded.values)
            files[field].write(np.fromiter(flat, dtype, int(counts.sum())).tobytes())
            lengths[field].append(counts)
            sizes[field].extend(encoded.bytes)

    try:
        for field, dtype in encoder.types.items():
            _header(files[field], dtype, 0)
        rows = range(len(source))
        for row in tqdm(rows, f"tokenize {source.name}", unit="row", leave=False, disable=None):
            pending += _add(encoder, source, row)
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


def _add(encoder: Encoder, source: Source, row: int) -> int:
    """Gives an encoder a row; its errors name the file and line too."""
    example = source[row]
    try:
        return encoder.add(example, f"{source.name}, row {row}")
    except ValueError as error:
        if not isinstance(source, Records):
            raise
        raise ValueError(f"{error} ({source.place(row)})") from error


def _header(file: BinaryIO, dtype: np.dtype, count: int) -> None:
    """Writes the .npy header in place: first without a count, at the end with it."""
    file.seek(0)
    about = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False}
    # numpy pads the header so that the first axis can grow; its length does not change.
    np.lib.format.write_array_header_1_0(file, {**about, "shape": (count,)})


def text_of(source: Source, row: int, field: str) -> str:
    """The text of one field; ValueError names source, row and field where there is none."""
    return field_text(source[row], field, f"{source.name}, row {row}")
