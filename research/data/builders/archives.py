"""Reader of package files (.whl, .zip, .tar.*, .deb) in memory, with checked member names."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from research.runtime.expansion import check_expansion

MAX_MEMBER_BYTES = 512 * 2**20  # a larger member is a mistake or an archive bomb
MAX_WANTED_BYTES = 4 * 2**30  # and so are more of all wanted members, which are held in memory
_BLOCK = 2**20
Members = list[tuple[str, bytes]]  # name, content
_READ_ERRORS = (
    *(zipfile.BadZipFile, tarfile.TarError, EOFError),
    *(gzip.BadGzipFile, zlib.error, lzma.LZMAError),
)


def safe_member(name: str) -> str:
    """The member's path without a leading "./". Raises ValueError if it could leave a folder."""
    path = PurePosixPath(name)
    if "\\" in name or "\0" in name or path.is_absolute() or ".." in path.parts or ":" in name[:2]:
        raise ValueError(f"unsafe archive member {name!r}: absolute or outside of the archive")
    return str(path)


def read_members(path: Path, pattern: str) -> Iterator[tuple[str, bytes]]:
    """(name, content) of every file in an archive whose whole name matches, sorted by name.

    Reads .whl/.zip, .tar.* and .deb archives in memory; nothing is unpacked onto the disk.

    Args:
        path: the archive.
        pattern: regular expression for the member's whole path.

    Raises:
        ValueError: a member's path is unsafe, a wanted member is a link or too large, or all of
            them are, the archive is of another kind or torn, or nothing matches.
        ExpansionError: a compressed tar unpacks to too much.
    """
    name_pattern = re.compile(pattern)
    try:
        if path.suffix in (".whl", ".zip"):
            members = _read_zip(path, name_pattern)
        elif path.suffix == ".deb":
            members = _read_tar(_debian_data(path), path, name_pattern)
        else:
            members = _read_tar(path.read_bytes(), path, name_pattern)
    except _READ_ERRORS as error:
        raise ValueError(f"{path} is not a readable archive: {error}") from error
    if not members:
        raise ValueError(f"{path}: no member matches {pattern!r}")
    yield from sorted(members)


def _check_size(path: Path, name: str, size: int, members: Members) -> None:
    if size > MAX_MEMBER_BYTES:
        raise ValueError(f"{path}: member {name!r} is {size} bytes, over {MAX_MEMBER_BYTES}")
    if size + sum(len(content) for _, content in members) > MAX_WANTED_BYTES:
        raise ValueError(
            f"{path}: its members up to {name!r} are over {MAX_WANTED_BYTES} bytes together"
        )


def _read_zip(path: Path, name_pattern: re.Pattern[str]) -> Members:
    members: Members = []
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            name = safe_member(info.filename)
            if not info.is_dir() and name_pattern.fullmatch(name):
                _check_size(path, name, info.file_size, members)
                members.append((name, archive.read(info)))
    return members


class _Unpacked(io.RawIOBase):
    """What a compressed tar holds, read once from front to back and not beyond its limit.

    tarfile takes some headers' word for their size, and reads so much into memory at once.
    """

    def __init__(self, content: bytes, path: Path):
        self._size, self._path, self._count = len(content), path, 0
        self._stream: Any = io.BytesIO(content)
        for magic, module in ((b"\x1f\x8b", gzip), (b"\xfd7zXZ", lzma), (b"BZh", bz2)):
            if content.startswith(magic):
                self._stream = module.open(self._stream)

    def read(self, size: int = -1) -> bytes:
        blocks = []
        while size and (block := self._stream.read(min(size, _BLOCK) if size > 0 else _BLOCK)):
            blocks.append(block)
            self._count += len(block)
            size -= len(block) if size > 0 else 0
            check_expansion(self._count, self._size, str(self._path))
        return b"".join(blocks)


def _read_tar(content: bytes, path: Path, name_pattern: re.Pattern[str]) -> Members:
    members: Members = []
    with tarfile.open(fileobj=_Unpacked(content, path), mode="r|") as archive:
        for info in archive:
            name = safe_member(info.name)
            if info.isdir() or not name_pattern.fullmatch(name):
                continue
            if not info.isreg():
                raise ValueError(f"{path}: member {name!r} is a link or device, not a file")
            _check_size(path, name, info.size, members)
            file = archive.extractfile(info)
            assert file is not None  # it is for regular files
            members.append((name, file.read()))
    return members


def _debian_data(path: Path) -> bytes:
    """The data.tar.* of a .deb, which is a plain `ar` archive: 60-byte headers, even offsets."""
    blob = path.read_bytes()
    if not blob.startswith(b"!<arch>\n"):
        raise ValueError(f"{path} is not a Debian package")
    offset = 8
    while offset + 60 <= len(blob):
        name, size = (
            blob[offset : offset + 16].decode("ascii").strip(),
            int(blob[offset + 48 : offset + 58]),
        )
        if name.rstrip("/").startswith("data.tar"):
            return blob[offset + 60 : offset + 60 + size]
        offset += 60 + size + size % 2
    raise ValueError(f"{path} has no data.tar member")
