"""Paths on a disk and in a bucket (gs://) behind one type; buckets need tools/setup buckets.

Requests to a bucket that does not answer are repeated: by gcsfs (folders, small files) for half a
minute, by TensorStore (arrays) for a quarter of an hour. What fails after that, or is refused, is a
`StorageError` here. gcsfs's own `is_dir` and `is_file` return False instead, and a run would start
afresh.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import re
import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec.config
from etils import epath

# these print a traceback of what they raise as well
for _name in ("gcsfs", "fsspec.prefetcher"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)
# other processes write too: an older listing may be wrong
fsspec.config.conf.setdefault("gcs", {}).setdefault("use_listings_cache", False)


class StorageError(OSError):
    """A bucket refuses or does not answer; the message names the place and the remedy."""


def absolute(path: str | os.PathLike[str]) -> epath.Path:
    """The absolute path: a change of the working directory does not change it.

    Raises:
      ValueError: it is in a bucket, and what opens buckets is not installed.
    """
    text = os.fspath(path)
    if text.startswith("gs://") and importlib.util.find_spec("gcsfs") is None:
        raise ValueError(f"{text} cannot be opened: buckets need gcsfs (tools/setup buckets)")
    return epath.Path(text if "://" in text else os.path.abspath(os.path.expanduser(text)))


def require_local(path: str | os.PathLike[str], option: str) -> Path:
    """A path on a disk, for what must be mapped, or is written piece by piece.

    Raises:
      ValueError: it is in a bucket; `option` is named.
    """
    if is_remote(path):
        raise ValueError(
            f"{option} {os.fspath(path)} is in a bucket, and this takes a path on a disk: copy it "
            "with gcloud storage cp -r"
        )
    return Path(path)


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether it lies in a bucket: no locks, no appending, and a file appears whole."""
    return "://" in os.fspath(path)


def is_folder(path: str | os.PathLike[str]) -> bool:
    """Whether there is such a folder.

    Raises:
      StorageError: the bucket does not say.
    """
    return _is(path, folder=True)


def is_file(path: str | os.PathLike[str]) -> bool:
    """Whether there is such a file.

    Raises:
      StorageError: the bucket does not say.
    """
    return _is(path, folder=False)


def _is(path: str | os.PathLike[str], folder: bool) -> bool:
    place = absolute(path)
    if not is_remote(place):
        return place.is_dir() if folder else place.is_file()
    with storage_errors(place):
        try:
            return place.stat().is_directory == folder
        except FileNotFoundError:
            return False


def names_in(folder: str | os.PathLike[str]) -> list[str]:
    """The names of what is in a folder, in order; none where it is not there.

    Raises:
      StorageError: the bucket does not say.
    """
    place = absolute(folder)
    with storage_errors(place):
        try:
            return sorted(path.name for path in place.iterdir())
        except FileNotFoundError:
            return []


def file_sizes(folder: str | os.PathLike[str]) -> dict[str, int]:
    """Path below a folder -> bytes, of every file in it at any depth.

    Raises:
      StorageError: the bucket does not say.
    """
    with storage_errors(folder):
        system, inside = fsspec.url_to_fs(os.fspath(absolute(folder)))
        files = system.find(inside, detail=True)
    return {os.path.relpath(name, inside): info["size"] for name, info in files.items()}


@contextlib.contextmanager
def storage_errors(path: str | os.PathLike[str], what: str = "read") -> Iterator[None]:
    """Errors of a bucket that refuses or does not answer, with the place and what to do.

    Raises:
      StorageError: in place of those that gcsfs, aiohttp and Google's libraries each have.
    """
    try:
        yield
    except StorageError:
        raise
    except Exception as error:
        if not is_remote(path) or (message := describe_storage_error(error, path)) is None:
            raise
        raise StorageError(f"could not {what} {path}: {message}") from error


_DENIED = re.compile(
    r"Forbidden|PERMISSION_DENIED|UNAUTHENTICATED|, 40[13]$|does not have storage\.|"
    r"^(Refresh|DefaultCredentials)Error"
)
_AWAY = re.compile(
    r"retry attempts failed|UNAVAILABLE|DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED|, (408|429|5\d\d)$|"
    r"^(Client\w*|ServerDisconnected|Connection\w*|Proxy|Transport|\w*Timeout)Error"
)
# a file was made by another between our look and our write
_IN_USE = re.compile(r"ALREADY_EXISTS|conditionNotMet|, 412$")


def describe_storage_error(error: BaseException, path: str | os.PathLike[str] = "") -> str | None:
    """The message for a bucket that refuses or does not answer, or in which another writes, and
    what to do; None for other errors."""
    bucket = "/".join(os.fspath(path).split("/")[:3]) or "the bucket"
    cause: BaseException | None = error
    while cause is not None:
        text = f"{type(cause).__name__}: {cause}".strip()
        if _DENIED.search(text):
            return (
                f"{_line(cause)}. This account may not do that in {bucket}: give it the role "
                "roles/storage.objectUser there, or take another account "
                "(gcloud auth application-default login)"
            )
        if _AWAY.search(text):
            return (
                f"{_line(cause)}. {bucket} does not answer, and was asked again for a while: "
                "start the same command again when it does"
            )
        if _IN_USE.search(text):
            return (
                f"{_line(cause)}. Another run writes there at the same time, and nothing locks a "
                "folder of a bucket: let one of the two end, and give each a --workdir of its own"
            )
        cause = cause.__cause__ or cause.__context__
    return None


def is_from_storage_library(error: BaseException) -> bool:
    """Whether a library that opens buckets raised the error."""
    return type(error).__module__.partition(".")[0] in ("gcsfs", "aiohttp", "google", "requests")


def upload_file(file: Path, path: epath.Path) -> None:
    """Copies a file of any size into a bucket; it appears there whole.

    Raises:
      StorageError: the bucket refuses or does not answer.
    """
    with storage_errors(path, "write"):
        system, inside = fsspec.url_to_fs(os.fspath(path))
        system.put_file(str(file), inside)


def check_writable(folder: str | os.PathLike[str]) -> None:
    """Writes a small file in a bucket and removes it; local folders are left to the first write.

    Its name is this process's alone: others may look at the same time.

    Raises:
      StorageError: the bucket is not there, or not ours to write in.
    """
    if is_remote(folder):
        probe = absolute(folder) / f".writable.{uuid.uuid4().hex}"
        upload_bytes(b"", probe)
        with storage_errors(probe, "remove"):
            probe.unlink()


def upload_bytes(content: bytes, path: epath.Path) -> None:
    """Writes a small file in a bucket; it appears there whole.

    Raises:
      StorageError: the bucket refuses or does not answer.
    """
    try:
        path.write_bytes(content)
    except Exception as error:  # gcsfs, aiohttp and Google's libraries each have their own
        bucket = "/".join(os.fspath(path).split("/")[:3])
        remedy = f"{_line(error)}. Is there a bucket {bucket}?"
        message = describe_storage_error(error, path) or remedy
        raise StorageError(f"could not write {path}: {message}") from error


def _line(error: BaseException) -> str:
    """The error in one line, without the details of TensorStore in brackets."""
    text = re.split(r" \[\w+=", str(error))[0]
    return f"{type(error).__name__}: {' '.join(text.split())}"[:400].rstrip(".")
