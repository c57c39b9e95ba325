"""Walks the header of a GGUF file before the `gguf` package reads it: a few bytes may claim any
count, and the package would believe them."""

from __future__ import annotations

import math
import mmap
import struct
from pathlib import Path

import gguf

from research.interop.fields import UnsupportedModelError

# bytes of the scalar kinds of values; strings are 8 and arrays 9
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY = 8, 9
# numbers and bytes of a block, by type
_BLOCKS = {int(kind): sizes for kind, sizes in gguf.GGML_QUANT_SIZES.items()}
# of keys and of tensors, far more than any model has
_MOST = 2**20


def check(path: Path) -> None:
    """Refuses a header that does not lie in the file.

    Raises:
      UnsupportedModelError: naming the key or tensor at which it breaks.
    """
    if path.stat().st_size < 24:
        raise UnsupportedModelError(f"{path} is no whole GGUF file: {path.stat().st_size} bytes")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        _Walk(path, content).run()


class _Walk:
    def __init__(self, path: Path, content: mmap.mmap):
        self.path, self.content, self.at, self.item = path, content, 0, "its start"

    def run(self) -> None:
        magic, version, tensors, keys = struct.unpack_from("<4sIQQ", self.content)
        if magic == b"GGUF" and version in (2 << 24, 3 << 24):
            raise UnsupportedModelError(
                f"{self.path} is big-endian, as files for s390x are: convert it with the gguf "
                "package, gguf-convert-endian FILE little"
            )
        if magic != b"GGUF" or version not in (2, 3):
            raise UnsupportedModelError(f"{self.path} is no whole GGUF file of version 2 or 3")
        if max(tensors, keys) > _MOST:
            raise UnsupportedModelError(f"{self.path} claims {keys:,} keys and {tensors:,} tensors")
        self.at, alignment, tensor_ends = 24, 32, []
        for _ in range(keys):
            self.item = f"a key after {self.item}"
            self.item = f"the key {self.text()!r}"
            kind, start = self.number("<I"), self.at
            self.value(kind)
            if self.item == "the key 'general.alignment'" and kind == 4:
                alignment = max(1, struct.unpack_from("<I", self.content, start)[0])
        for _ in range(tensors):
            self.item = f"a tensor after {self.item}"
            self.item = f"the tensor {self.text()!r}"
            dimensions = self.number("<I")
            if not 1 <= dimensions <= 4:
                raise UnsupportedModelError(f"{self.path}: {self.item} has {dimensions} dimensions")
            numbers = math.prod(self.number("<Q") for _ in range(dimensions))
            kind = self.number("<I")
            if kind not in _BLOCKS:
                raise UnsupportedModelError(
                    f"{self.path}: {self.item} is of an unknown type {kind}"
                )
            block, size = _BLOCKS[kind]
            tensor_ends.append((self.item, self.number("<Q") + numbers // block * size))
        start = -(-self.at // alignment) * alignment
        for self.item, end in tensor_ends:
            self.at = start
            self.skip(end)

    def value(self, kind: int) -> None:
        if kind == _STRING:
            self.skip(self.number("<Q"))
        elif kind == _ARRAY:
            inner, count = self.number("<I"), self.number("<Q")
            if inner == _STRING and count <= len(self.content) // 8:
                for _ in range(count):
                    self.skip(self.number("<Q"))
            elif inner in _SIZES:
                self.skip(count * _SIZES[inner])
            else:
                raise UnsupportedModelError(f"{self.path}: {self.item} is no list that Graft reads")
        elif kind in _SIZES:
            self.skip(_SIZES[kind])
        else:
            raise UnsupportedModelError(f"{self.path}: {self.item} is of an unknown kind {kind}")

    def text(self) -> str:
        length = self.number("<Q")
        start = self.at
        self.skip(length)
        if length > 4096:
            raise UnsupportedModelError(
                f"{self.path}: a name of {length:,} bytes after {self.item}"
            )
        return self.content[start : self.at].decode("utf-8", "replace")

    def number(self, form: str) -> int:
        start = self.at
        self.skip(struct.calcsize(form))
        return int(struct.unpack_from(form, self.content, start)[0])

    def skip(self, size: int) -> None:
        self.at += size
        if self.at > len(self.content):
            raise UnsupportedModelError(
                f"{self.path} is no whole GGUF file: {self.item} ends behind its end"
            )
