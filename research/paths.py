"""Local folders and gs:// prefixes behind one type; buckets need tools/setup buckets."""

from __future__ import annotations

import importlib.util
import os

from etils import epath


def absolute(path: str | os.PathLike[str]) -> epath.Path:
    """A path that a change of the working directory does not change.

    Raises:
      ValueError: it is in a bucket, and what opens buckets is not installed.
    """
    text = os.fspath(path)
    if text.startswith("gs://") and importlib.util.find_spec("gcsfs") is None:
        raise ValueError(f"{text} cannot be opened: buckets need gcsfs (tools/setup buckets)")
    return epath.Path(text if "://" in text else os.path.abspath(os.path.expanduser(text)))


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether it lies in a bucket: no locks, no appending, and a file appears whole."""
    return "://" in os.fspath(path)


def write_whole(path: str | os.PathLike[str], text: str) -> None:
    """Writes a file whole or not at all."""
    whole = absolute(path)
    whole.parent.mkdir(parents=True, exist_ok=True)
    if is_remote(whole):
        _upload(whole, text.encode())
        return
    partial = whole.with_name(f"{whole.name}.{os.getpid()}.partial")
    partial.write_bytes(text.encode())
    partial.replace(whole)


def check_writable(folder: str | os.PathLike[str]) -> None:
    """Writes a small file in a bucket and removes it; local folders are left to the first write.

    Raises:
      OSError: the bucket is not there, or not ours to write in.
    """
    if is_remote(folder):
        probe = absolute(folder) / ".writable"
        _upload(probe, b"")
        probe.unlink()


def _upload(path: epath.Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except Exception as error:  # gcsfs, aiohttp and Google's libraries each have their own
        raise OSError(
            f"could not write {path} ({type(error).__name__}: {error}): is the bucket there, and "
            "may this account write in it? (gcloud auth application-default login)"
        ) from error
