"""Opens files on a disk or in a bucket (`gs://`, `s3://`, ...) alike, on `fsspec`.

    for file in files.find(config, split): ...

What must be read at any place, but is compressed or in a bucket, is written once as a plain file
into `cache_folder("files")`: `local_copy`.
"""

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import zlib
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import fsspec
import pyarrow
from fsspec.implementations.local import LocalFileSystem

from research.data.sources import contents
from research.data.sources.base import FilesConfig
from research.runtime import storage
from research.runtime.checksums import crc32
from research.runtime.expansion import check_expansion
from research.runtime.files import atomic_path, atomic_write, make_shared_folder, share

# The end of an error about one that cannot be opened.
BUCKETS = (
    "Buckets need a package of their own: gcsfs for gs://, s3fs for s3:// (tools/setup buckets)."
)
# Endings of compressed files, and pyarrow's names of how.
CODECS = {".gz": "gzip", ".zst": "zstd"}
# Endings of files that hold one or several others.
_PACKED = (*CODECS, ".bz2", ".xz", ".zip")
# Those of copies that editors and backups leave beside a file.
_COPIES = ("~", ".bak", ".swp", ".tmp", ".orig")
_BLOCK = 2**20
_MAGIC = "*?["
_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)


@dataclasses.dataclass(frozen=True)
class File:
    """One file, wherever it is."""

    system: fsspec.AbstractFileSystem
    # As the file system knows it.
    path: str
    # As it is called in errors.
    name: str
    # Of one on a disk, when it was found: size, time of its last change, and which file it is.
    state: tuple[int, ...] = ()

    @classmethod
    def find(cls, system: fsspec.AbstractFileSystem, path: str, name: str) -> "File":
        """The file as it is now."""
        return cls(system, path, name, cls(system, path, name)._state())

    @property
    def is_local(self) -> bool:
        """Whether it lies on a disk of this machine."""
        return isinstance(self.system, LocalFileSystem)

    def open(self) -> BinaryIO:
        """For reading bytes, at any place."""
        with storage.storage_errors(self.name):
            return self.system.open(self.path, "rb")

    def digest(self) -> str:
        """sha256 of size and content."""
        with self.open() as file:
            return digest(file)

    def check_unchanged(self) -> None:
        """Raises FileError if the file is not as it was found; of one in a bucket nobody knows."""
        if self._state() != self.state:
            raise contents.FileError(
                f"{self.name} was changed or replaced while it was read, or between two looks at "
                "it. Is it still being written? Start again when it is whole"
            )

    def _state(self) -> tuple[int, ...]:
        try:
            status = os.stat(self.path) if self.is_local else None
        except OSError:
            return (-1,)  # it is gone, or nothing to read
        if status is None:
            return ()
        return status.st_size, status.st_mtime_ns, status.st_dev, status.st_ino


def cache_folder(name: str) -> Path:
    """Where files of one sort are kept: `$GRAFT_CACHE/name`, or ~/.cache/graft/name."""
    return Path(os.environ.get("GRAFT_CACHE") or Path.home() / ".cache" / "graft") / name


@contextlib.contextmanager
def shared_cache(folder: Path) -> Iterator[None]:
    """Makes a folder of the cache, and says what to do where it cannot be written or read.

    Users who may read or write in the folder above it may do so in it too; what each puts there
    stays theirs.

    Raises:
      OSError: the disk is full, or the folder is another user's; names it and the setting.
    """
    with cache_errors(folder):
        make_shared_folder(folder)
        yield


@contextlib.contextmanager
def cache_errors(folder: Path) -> Iterator[None]:
    """Says what to do where a folder of the cache cannot be written or read, as `shared_cache`."""
    try:
        yield
    except OSError as error:
        place, elsewhere = str(error.filename or folder), "or set GRAFT_CACHE to a folder"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            remedy = f"Nothing is left of it: free disk space, {elsewhere} on a larger disk"
        elif error.errno in _DENIED and place.startswith(str(folder)):  # not the source's file
            remedy = f"Ask its owner to let you read and write there, {elsewhere} of your own"
        else:
            raise
        raise OSError(f"the cache {folder}: {error.strerror} ({place}). {remedy}") from error


def digest(file: BinaryIO, whole: int | None = None) -> str:
    """sha256 of size and content; of size, first and last MiB if larger than `whole` bytes."""
    size = file.seek(0, os.SEEK_END)
    hasher = hashlib.sha256(f"{size} ".encode())
    file.seek(0)
    if whole is not None and size > whole:
        hasher.update(file.read(_BLOCK))
        file.seek(size - _BLOCK)
    while block := file.read(_BLOCK):
        hasher.update(block)
    return hasher.hexdigest()


def joint_digest(digests: Sequence[str]) -> str:
    """One digest of several files in their order; of a single file its own."""
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256(json.dumps(digests).encode()).hexdigest()


def find(config: FilesConfig, split: str) -> list[File]:
    """The file at the source's path, or all that fit it as a pattern (`part-*.jsonl`), by name.

    Raises:
        ValueError: the source has no such split, its bucket cannot be opened, or a pattern fits
          something twice: a backup, or one file plain and compressed.
        FileNotFoundError: there is none.
    """
    system, path, name = _locate(config, split)
    if _is("file", system, path, name):
        return [File.find(system, path, name)]
    if not any(sign in path for sign in _MAGIC):
        raise FileNotFoundError(f"Source {config.name!r}: there is no file {name}.")
    with storage.storage_errors(name):
        fitting = sorted(system.glob(path))
    for each in fitting:
        _check_link(system, each, _name(system, each, name), config.name)
    names = [p for p in fitting if _is("file", system, p, name)]
    if not names:
        raise FileNotFoundError(f"Source {config.name!r}: no file fits the pattern {name}.")
    matches = [File.find(system, p, _name(system, p, name)) for p in names]
    _check_copies(matches, path, config.name)
    return matches


def _check_copies(matches: Sequence[File], pattern: str, source: str) -> None:
    """Raises ValueError if a pattern fits a copy of a file, unless it ends as copies do."""
    by_plain_path: dict[str, File] = {}
    for file in matches:
        path = PurePosixPath(file.path)
        if file.path.endswith(_COPIES) and not pattern.endswith(_COPIES):
            raise ValueError(
                f"Source {source!r}: its pattern fits {file.name}, a copy as editors and backups "
                "leave it: write a pattern that does not, or remove it."
            )
        plain_path = str(path.with_suffix("") if path.suffix in CODECS else path)
        if other := by_plain_path.get(plain_path):
            raise ValueError(
                f"Source {source!r}: its pattern fits {other.name} and {file.name}, one file plain "
                "and compressed: write a pattern of one ending, or a source for each."
            )
        by_plain_path[plain_path] = file


def under(config: FilesConfig, split: str, endings: Collection[str]) -> dict[str, File]:
    """Path below the source's folder -> file, of all files with one of the endings, by name.

    Hidden files, and those in hidden folders, are left out. Links to files are followed.

    Raises:
        ValueError: the source has no such split, its bucket cannot be opened, or a file in it is
          compressed or a link to a folder, and would be passed over.
        FileNotFoundError: there is no such folder, no such file in it, or a link leads nowhere.
    """
    system, folder, name = _locate(config, split)
    if not _is("directory", system, folder, name):
        raise FileNotFoundError(f"Source {config.name!r}: there is no folder {name}.")
    matches = {}
    with storage.storage_errors(name):
        every = system.find(folder, detail=True)
    for path, about in every.items():
        below = PurePosixPath(path).relative_to(PurePosixPath(folder))
        if any(part.startswith(".") for part in below.parts):
            continue
        is_link = bool(about.get("islink"))
        if is_link and system.isdir(path):
            raise ValueError(
                f"Source {config.name!r}: {_name(system, path, name)} is a link to a folder, whose "
                "files would not be read: move them here, or make a source of them."
            )
        if below.suffix.lower() in _PACKED and PurePosixPath(below.stem).suffix.lower() in endings:
            raise ValueError(
                f"Source {config.name!r}: {_name(system, path, name)} is compressed, and would not "
                "be read: unpack it, or move it elsewhere."
            )
        if below.suffix.lower() in endings:
            if not is_link and about["type"] != "file":
                continue
            _check_link(system, path, _name(system, path, name), config.name)
            matches[below] = File.find(system, path, _name(system, path, name))
    if not matches:
        suffixes = " or ".join(endings)
        raise FileNotFoundError(f"Source {config.name!r}: no {suffixes} file under {name}.")
    return {below.as_posix(): matches[below] for below in sorted(matches)}


def _check_link(system: fsspec.AbstractFileSystem, path: str, name: str, source: str) -> None:
    """Raises FileNotFoundError for a link that leads nowhere."""
    if isinstance(system, LocalFileSystem) and os.path.islink(path) and not os.path.exists(path):
        raise FileNotFoundError(
            f"Source {source!r}: {name} is a link to {os.readlink(path)}, which is not there: mend "
            "it, or remove it."
        )


def local_copy(file: File) -> Path:
    """The file itself if it is plain and on a disk; otherwise a plain copy, made once.

    A compressed file's copy is found again by its digest; one in a bucket by what the bucket says
    of it (size, time, checksum), so that it is not fetched to be compared. Copies stay until the
    folder is removed.

    Raises:
        ValueError: a compressed file is cut short or damaged, or its copy has changed.
        ExpansionError: it unpacks to too much.
        OSError: the cache's disk is full, or the cache is another user's.
    """
    codec = CODECS.get(PurePosixPath(file.path).suffix)
    if file.is_local and codec is None:
        return Path(file.path)
    if codec and file.system.size(file.path) == 0:  # of nothing it has bytes too
        raise ValueError(f"{file.name}: cut short: it is empty, and no {codec} file")
    key = file.digest()[:32] if file.is_local else _remote_key(file)
    copy = cache_folder("files") / key
    checksum = copy.with_suffix(".crc32")
    with shared_cache(copy.parent):
        if not (copy.is_file() and checksum.is_file()):  # one of old, or half of it is lost
            _write_copy(file, codec, copy, checksum)
        if checksum.read_text().strip() != f"{crc32(copy):08x}":
            raise ValueError(
                f"{copy}, the plain copy of {file.name}, is not what was written: remove it and "
                f"{checksum}, and it is made again."
            )
    return copy


def _write_copy(file: File, codec: str | None, copy: Path, checksum: Path) -> None:
    """Writes a copy, and before it its checksum: that of what was read."""
    checksum_value = 0
    with (
        atomic_path(copy) as partial,  # several processes may make it at once
        storage.storage_errors(file.name),
        partial.open("wb") as out,
        file.open() as raw,
    ):
        stream: Any = pyarrow.CompressedInputStream(raw, codec) if codec else raw
        while block := _read_block(stream, file, codec):
            out.write(block)
            checksum_value = zlib.crc32(block, checksum_value)
            if codec:
                check_expansion(out.tell(), raw.tell(), file.name)
        share(partial, partial.parent)
        atomic_write(checksum, f"{checksum_value:08x}", is_shared=True)


def _read_block(stream: Any, file: File, codec: str | None) -> bytes:
    try:
        return stream.read(_BLOCK)
    except OSError as error:
        if codec is None or (not file.is_local and storage.describe_storage_error(error)):
            raise
        raise ValueError(
            f"{file.name}: cut short, or no {codec} file ({error}): if it is plain, name it so"
        ) from error


def _remote_key(file: File) -> str:
    about = sorted((name, repr(value)) for name, value in file.system.info(file.path).items())
    return hashlib.sha256(json.dumps([file.name, about]).encode()).hexdigest()[:32]


def _locate(config: FilesConfig, split: str) -> tuple[fsspec.AbstractFileSystem, str, str]:
    """File system, path in it, and path as it is called in errors."""
    if "{split}" not in config.path and split != config.split:
        raise ValueError(
            f"Source {config.name!r} has only the split {config.split!r}, not {split!r}: "
            f"write '{{split}}' in its path, {config.path!r}, where the split's name belongs."
        )
    path = config.path.replace("{split}", split)
    if "://" not in path:
        name = str(Path(os.path.expanduser(path)))
        return fsspec.filesystem("file"), os.path.abspath(name), name
    try:
        system, inside = fsspec.url_to_fs(path)
    except (ImportError, ValueError) as error:
        raise ValueError(
            f"Source {config.name!r}: {path} cannot be opened: {error}. {BUCKETS}"
        ) from error
    return system, inside, path


def _is(kind: str, system: fsspec.AbstractFileSystem, path: str, name: str) -> bool:
    """Whether it is a "file" or a "directory"; gcsfs says no where it was refused."""
    if isinstance(system, LocalFileSystem):
        return system.isfile(path) if kind == "file" else system.isdir(path)
    with storage.storage_errors(name):
        try:
            return system.info(path)["type"] == kind
        except FileNotFoundError:
            return False


def _name(system: fsspec.AbstractFileSystem, path: str, requested_path: str) -> str:
    """What to call a file that was found by a pattern or in a folder."""
    if not isinstance(system, LocalFileSystem):
        return str(system.unstrip_protocol(path))
    return path if os.path.isabs(requested_path) else os.path.relpath(path)
