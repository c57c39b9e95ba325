"""Tensors of GGUF files, dequantised region by region, and models that are split over files.

The `gguf` package reads the header and knows the quantised types. What it does not check is checked
here: that tensors lie inside the file, apart from each other, with the sizes of their types.
"""

from __future__ import annotations

import collections
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from research.interop.fields import UnsupportedModelError
from research.interop.gguf import header

PLAIN_TYPES = ("F32", "F16", "BF16")
# those that the `gguf` package dequantises
TYPES = (
    *PLAIN_TYPES,
    *("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
    *("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS"),
    *("TQ1_0", "TQ2_0", "MXFP4", "NVFP4"),
)
# how llama.cpp names the files of one model
_PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")


class GGUFTensors:
    """The tensors of a GGUF file or of several, as transformers has them: rows are outputs.

    Attributes:
      heads: how many heads the rows of a tensor are, where llama.cpp has its rotary order: a
        head's two halves interleaved.
      norm_offset: what llama.cpp has added to the norms' weights, Gemma's 1.
    """

    def __init__(self, tensors: Sequence[gguf.ReaderTensor]):
        self._tensors = {tensor.name: tensor for tensor in tensors}
        self.shapes = {
            name: tuple(int(n) for n in tensor.shape[::-1])
            for name, tensor in self._tensors.items()
        }
        self.dtypes = {name: tensor.tensor_type.name for name, tensor in self._tensors.items()}
        self.heads: dict[str, int] = {}
        self.norm_offset = 0.0

    def read(self, name: str, region: tuple[slice, ...]) -> np.ndarray:
        tensor = self._tensors[name]
        rows, *columns = region
        if name in self.heads:
            whole = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            return split_halves(whole, self.heads[name])[region]
        if not columns:
            vector = gguf.quants.dequantize(tensor.data, tensor.tensor_type)[rows]
            offset = self.norm_offset if name.endswith("norm.weight") else 0.0
            return vector - np.float32(offset)
        # whole rows: blocks of quantised numbers lie along them
        return gguf.quants.dequantize(tensor.data[rows], tensor.tensor_type)[:, *columns]


def split_halves(values: np.ndarray, heads: int) -> np.ndarray:
    """Rows with the halves of every head one after the other, from llama.cpp's interleaved ones."""
    rows, *rest = values.shape
    return values.reshape(heads, rows // heads // 2, 2, *rest).swapaxes(1, 2).reshape(values.shape)


def interleave_halves(values: np.ndarray, heads: int) -> np.ndarray:
    """Rows in llama.cpp's rotary order: the halves of every head interleaved."""
    rows, *rest = values.shape
    return values.reshape(heads, 2, rows // heads // 2, *rest).swapaxes(1, 2).reshape(values.shape)


def open_parts(path: Path) -> tuple[dict[str, Any], GGUFTensors]:
    """Metadata and tensors of a file, or of all files that the model at `path` is split over.

    Args:
      path: any of them.

    Raises:
      UnsupportedModelError: a broken file, or files that are no model together.
    """
    metadata, tensors = _read(path)
    count = metadata.get("split.count", 0)
    if type(count) is not int:
        raise UnsupportedModelError(f"{path}: split.count is {count!r:.60}, no number of files")
    if count in (0, 1) and not metadata.get("split.no"):
        return metadata, GGUFTensors(tensors)
    paths = _paths(path, count, metadata.get("split.no"))
    _check_downloads(paths)
    metadata, tensors, total = {}, [], None
    for number, part in enumerate(paths):
        keys, part_tensors = _read(part)
        place = keys.get("split.no"), keys.get("split.count")
        if place != (number, count):
            raise UnsupportedModelError(
                f"{part} is part {place[0]} (from 0) of {place[1]} by its keys split.no and "
                f"split.count, not {number} of {count}: files of different models are mixed"
            )
        if number == 0:
            metadata, total = keys, keys.get("split.tensors.count")
        own = [key for key in keys if not key.startswith(("GGUF.", "split."))]
        other = next((key for key in own if key not in metadata or keys[key] != metadata[key]), "")
        if other or keys.get("split.tensors.count") != total:
            raise UnsupportedModelError(
                f"{part} is of another model than {paths[0].name}: {other or 'split.tensors.count'}"
            )
        tensors += part_tensors
    names = [tensor.name for tensor in tensors]
    twice = next((name for name, n in collections.Counter(names).items() if n > 1), None)
    if twice or (total is not None and total != len(names)):
        problem = f"{twice} is in two" if twice else f"{total} tensors by its keys, {len(names)} in"
        raise UnsupportedModelError(
            f"{paths[0]}: {problem} of its {count} files: files of different models are mixed"
        )
    return metadata, GGUFTensors(tensors)


def _check_downloads(paths: Sequence[Path]) -> None:
    """Refuses files of several downloads, as huggingface_hub has written down beside them.

    The files of a split model after the first say nothing of the model: two fine-tunes that are cut
    alike differ in nothing but their numbers.
    """
    commits: dict[Path, str] = {}
    for path in paths:
        record = path.parent / ".cache" / "huggingface" / "download" / f"{path.name}.metadata"
        try:
            commits[path] = record.read_text(encoding="utf-8").split("\n")[0].strip()
        except (OSError, ValueError):  # it was not downloaded so
            continue
    for path, commit in commits.items():
        first, first_commit = next(iter(commits.items()))
        if commit != first_commit:
            raise UnsupportedModelError(
                f"{path} was downloaded from another commit than {first.name} ({commit:.60} and "
                f"{first_commit:.60}, by .cache/huggingface/download beside them): files of "
                "different models may be mixed. Download them anew, in one go, into an empty folder"
            )


def _paths(path: Path, count: int, number: Any) -> list[Path]:
    """The files of a split model, in order."""
    match = _PART.fullmatch(path.name)
    if not 1 <= count < 100_000:
        raise UnsupportedModelError(f"{path}: split.count is {count}")
    if match is None or int(match[3]) != count:
        name = f"-{(number or 0) + 1:05d}-of-{count:05d}.gguf"
        raise UnsupportedModelError(
            f"{path} is one of {count} files of a model; their names must end in {name} and so on"
        )
    names = [f"{match[1]}-{part + 1:05d}-of-{count:05d}.gguf" for part in range(count)]
    missing = [name for name in names if not (path.parent / name).is_file()]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UnsupportedModelError(
            f"{path} is one of {count} files of a model; {missing[0]}{more} is not beside it"
        )
    return [path.parent / name for name in names]


def _read(path: Path) -> tuple[dict[str, Any], list[gguf.ReaderTensor]]:
    """Metadata and tensors of one file, every tensor inside it and apart from the others."""
    header.check(path)
    size = path.stat().st_size
    try:
        reader = gguf.GGUFReader(path)
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError) as error:
        raise UnsupportedModelError(f"{path} is no whole GGUF file: {error}") from None
    end = 0
    for tensor in sorted(reader.tensors, key=lambda tensor: int(tensor.data_offset)):
        name, kind = tensor.name, tensor.tensor_type
        if kind.name not in TYPES:
            raise UnsupportedModelError(
                f"{path}: {name} is of type {kind.name}; Graft reads {', '.join(TYPES)}"
            )
        block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        numbers = math.prod(int(n) for n in tensor.shape)
        if numbers % block or numbers // block * block_bytes != int(tensor.n_bytes):
            raise UnsupportedModelError(
                f"{path}: {name} has {numbers} numbers in {tensor.n_bytes} B"
            )
        start = int(tensor.data_offset)
        if start < end:
            raise UnsupportedModelError(f"{path}: {name} overlaps the tensor before it")
        end = start + int(tensor.n_bytes)
    if end > size:
        raise UnsupportedModelError(
            f"{path} is cut short: {end:,} bytes by its header, {size:,} there"
        )
    return _metadata(reader.fields, path), list(reader.tensors)


def _metadata(fields: Mapping[str, Any], path: Path) -> dict[str, Any]:
    try:
        return {name: field.contents() for name, field in fields.items()}
    except (ValueError, IndexError, KeyError, TypeError) as error:
        raise UnsupportedModelError(f"{path}: broken metadata: {error}") from None
