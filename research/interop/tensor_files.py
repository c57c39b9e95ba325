"""Tensors in safetensors files: read region by region from the mapped file, written one by one.

Reading is the `safetensors` library's, which checks a header before it maps anything; writing is
ours, because the library wants all tensors of a file in memory at once.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import jax
import ml_dtypes
import numpy as np
import safetensors

from research.interop.family import Source
from research.interop.fields import UnsupportedModelError
from research.runtime import unique_json

ONE, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES: dict[str, Any] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
# bytes converted at a time
_BLOCK = 2**26
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class NotFiniteError(ValueError):
    """A tensor with numbers that are not finite; the message names it, and how many they are."""


class Tensors(Protocol):
    """Named tensors of a file or of several."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]: ...

    def read(self, name: str, region: tuple[slice, ...]) -> np.ndarray:
        """A region of a tensor, copied from the file."""


class SafeTensors:
    """The tensors of one safetensors file, or of those that an index names.

    Raises:
      UnsupportedModelError: a file is missing, broken, of another kind, or outside the folder.
    """

    def __init__(self, path: Path):
        self._files: dict[str, Any] = {}
        self.paths: list[Path] = []
        self._stack = contextlib.ExitStack()
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        for file, names in _files(path).items():
            try:
                reader = self._stack.enter_context(safetensors.safe_open(file, framework="np"))
                slices = {name: reader.get_slice(name) for name in reader.keys()}  # noqa: SIM118
                shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
                dtypes = {name: part.get_dtype() for name, part in slices.items()}
                _check_header(file)
            except (safetensors.SafetensorError, OSError, ValueError) as error:
                raise UnsupportedModelError(f"{file} is no safetensors file: {error}") from None
            absent = sorted((names or set()) - set(shapes))
            if absent:
                raise UnsupportedModelError(
                    f"{file} lacks {absent[0]}, which the index says it holds"
                )
            unnamed = sorted(set(shapes) - names) if names is not None else []
            if unnamed:
                raise UnsupportedModelError(
                    f"{file} holds {unnamed[0]}, which {INDEX} does not name "
                    f"({len(unnamed)} such tensors): they are of different models"
                )
            self.paths.append(file)
            for name in shapes:
                self.shapes[name], self.dtypes[name] = shapes[name], dtypes[name]
                self._files[name] = slices[name]

    def read(self, name: str, region: tuple[slice, ...]) -> np.ndarray:
        return self._files[name][region]

    def close(self) -> None:
        self._stack.close()


def _check_header(path: Path) -> None:
    """Refuses a header that names a tensor twice, of which the library takes one.

    Raises:
      ValueError: naming it.
    """
    with path.open("rb") as file:
        unique_json.parse(file.read(int.from_bytes(file.read(8), "little")))


def _files(path: Path) -> dict[Path, set[str] | None]:
    """The files to open, with the tensors to take from each; None takes all."""
    if path.is_file():
        return {path: None}
    index = path / INDEX
    if not index.is_file():
        if (path / ONE).is_file():
            return {path / ONE: None}
        raise UnsupportedModelError(f"{path} has neither {ONE} nor {INDEX}{_what_instead(path)}")
    try:
        names = unique_json.parse(index.read_text(encoding="utf-8"))["weight_map"]
        files: dict[Path, set[str] | None] = {}
        for name, file in names.items():
            if Path(file).name != file or file in (".", ".."):
                raise UnsupportedModelError(f"{index}: {file!r} is not a file beside it")
            files.setdefault(path / file, set()).add(name)  # type: ignore[union-attr]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, UnsupportedModelError):
            raise
        raise UnsupportedModelError(f"{index} is no index of tensors: {error!r}") from None
    return files


def pickle_advice(name: str, save: str) -> str:
    """What an error says of a pickle.

    Args:
      save: the call that writes safetensors from it.
    """
    return (
        f"{name} is a pickle, which can run code and is never read: where you trust it, load it "
        f"there and write safetensors with {save}"
    )


def _what_instead(path: Path) -> str:
    """What a folder holds where the files of weights should be, for an error."""
    patterns = ("pytorch_model*.bin", "*.pth", "*.pt", "*.ckpt", "*.bin")
    pickles = [file.name for pattern in patterns for file in sorted(path.glob(pattern))]
    others = sorted(file.name for file in path.glob("*.safetensors"))
    variants = [name for name in others if re.fullmatch(r"model\.\w+\.safetensors", name)]
    if variants:
        return f"; {variants[0]} is a variant of it: rename that, if you mean it"
    if others and all(name.startswith("consolidated") for name in others):
        return f"; {others[0]} has names of Mistral's own, which transformers does not read either"
    if others:
        return f"; {others[0]} may be a part of it: {INDEX}, which names the parts, is missing"
    if pickles:
        return "; " + pickle_advice(pickles[0], "model.save_pretrained(FOLDER)")
    return ""


def to_array(
    tensors: Tensors, source: Source, shape: jax.ShapeDtypeStruct, dtype: Any
) -> jax.Array:
    """A parameter on the sharding that `shape` carries; each device's part is read alone.

    Raises:
      NotFiniteError: numbers that are not finite.
    """

    def part(index: Any) -> np.ndarray:
        values = tensors.read(source.name, source.region(index, shape.shape))
        values = values.T if source.transposed else values
        result = np.ascontiguousarray(values, dtype)
        if not is_finite(result):
            whole = tuple(slice(None) for _ in source.shape)
            raise not_finite(source.name, tensors.read(source.name, whole))
        return result

    where = shape.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.make_array_from_callback(shape.shape, where, part)


def is_finite(values: np.ndarray) -> bool:
    """Whether all numbers are finite; needs no second array of the size."""
    return not values.size or bool(np.isfinite([values.min(), values.max()]).all())


def not_finite(name: str, values: np.ndarray) -> NotFiniteError:
    """The error of a tensor with numbers that are not finite."""
    count = values.size - np.count_nonzero(np.isfinite(np.asarray(values, np.float32)))
    return NotFiniteError(
        f"{count:,} of {values.size:,} numbers of {name} are not finite (NaN or infinite): the "
        "file is damaged, or training was"
    )


@contextlib.contextmanager
def name_unwritten(name: str) -> Iterator[None]:
    """Adds the tensor's name to the error of a full disk; NumPy gives only how many numbers.

    Raises:
      OSError: it could not be written.
    """
    try:
        yield
    except OSError as error:
        raise OSError(
            f"{name} could not be written ({error}): the disk may be full; nothing of it is kept"
        ) from error


def cast(values: np.ndarray, dtype: np.dtype, name: str) -> np.ndarray:
    """The values in a type, rows side by side.

    Raises:
      ValueError: a number is too large for it.
    """
    with np.errstate(over="ignore"):
        result = np.ascontiguousarray(values, dtype)
    if dtype == np.float16 and not np.isfinite(result).all():
        raise ValueError(
            f"{name} holds numbers beyond float16's largest, 65504; export in bfloat16 or float32"
        )
    return result


def write(
    folder: Path,
    shapes: Mapping[str, tuple[int, ...]],
    dtype: Any,
    file_size: int,
    read_tensor: Callable[[str], np.ndarray],
    other_dtypes: Mapping[str, Any] | None = None,
) -> Iterator[str]:
    """Writes tensors one after the other, with an index if they take several files.

    Args:
      file_size: bytes of a file at most; a larger tensor has a file alone.
      read_tensor: gives one by its name, when its turn comes.
      other_dtypes: the types of tensors that have another one.

    Yields:
      Names, as they are written.
    """
    types = {name: np.dtype((other_dtypes or {}).get(name, dtype)) for name in shapes}
    sizes = {name: int(np.prod(shape)) * types[name].itemsize for name, shape in shapes.items()}
    files: list[list[str]] = [[]]
    for name in shapes:
        if files[-1] and sum(sizes[n] for n in files[-1]) + sizes[name] > file_size:
            files.append([])
        files[-1].append(name)
    titles = [ONE] if len(files) == 1 else [
        f"model-{i + 1:05d}-of-{len(files):05d}.safetensors" for i in range(len(files))
    ]  # fmt: skip
    for title, names in zip(titles, files, strict=True):
        end, header = 0, {}
        for name in names:
            span = [end, end + sizes[name]]
            header[name] = {
                "dtype": _NAMES[types[name]], "shape": list(shapes[name]), "data_offsets": span
            }  # fmt: skip
            end = span[1]
        head = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
        head += b" " * (-len(head) % 8)
        with open(folder / title, "wb") as file:
            file.write(len(head).to_bytes(8, "little") + head)
            for name in names:
                array = read_tensor(name)
                if array.shape != tuple(shapes[name]):
                    raise ValueError(f"{name}: shape {array.shape} instead of {shapes[name]}")
                # in blocks of rows, so that no second copy of the whole exists
                rows = max(1, _BLOCK * len(array) // array.nbytes)
                for start in range(0, len(array), rows):
                    block = cast(array[start : start + rows], types[name], name)
                    with name_unwritten(name):
                        block.tofile(file)
                del array  # before the next one is read
                yield name
    if len(files) > 1:
        pairs = zip(titles, files, strict=True)
        content = {
            "metadata": {"total_size": sum(sizes.values())},
            "weight_map": {name: title for title, names in pairs for name in names},
        }
        (folder / INDEX).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
