"""A folder of the cache that is made once and read by many programs, with its checksums.

Its name is the hash of everything that its content depends on, so it is never out of date. It is
written whole or not at all: several processes may make the same one at the same time. Its checksums
are compared when it is opened.
"""

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from research.data.sources.files import shared_cache
from research.runtime.checksums import changed_file, checksums
from research.runtime.files import atomic_folder, atomic_write, share

log = logging.getLogger(__name__)

# What a folder's files are, and their checksums; written last.
_ABOUT = "about.json"


def cached_folder(
    cache: str | os.PathLike[str],
    content: Mapping[str, Any],
    title: str,
    write: Callable[[Path], None],
    about: Mapping[str, Any] | None = None,
) -> Path:
    """The folder of what `content` describes, made by `write` if it is not there.

    Args:
      cache: the folder of all such folders.
      content: what its files depend on, as JSON.
      title: what errors call it, such as "tokenized cache of books".
      write: writes its files into an empty folder.
      about: what is noted beside `content`, and nothing depends on.

    Raises:
        ValueError: the folder is damaged.
        OSError: the cache's disk is full, or the cache is another user's.
    """
    folder = _path(cache, content)
    with shared_cache(Path(cache)):
        if not folder.is_dir():
            try:
                with atomic_folder(folder) as partial:
                    write(partial)
                    _write_about(partial, {**(about or {}), **content})
                    share(partial, partial.parent)
            except OSError:
                if (
                    not folder.is_dir()
                ):  # otherwise another process was faster: its work is the same
                    raise
        _check(folder, title, content)
    return folder


def has_folder(cache: str | os.PathLike[str], content: Mapping[str, Any]) -> bool:
    """Whether the folder of what `content` describes is there."""
    return _path(cache, content).is_dir()


def _path(cache: str | os.PathLike[str], content: Mapping[str, Any]) -> Path:
    key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]
    return Path(cache) / key


def damaged(folder: Path, title: str, why: str) -> ValueError:
    """The error about a folder whose files are not what was written."""
    return ValueError(
        f"The {title} is damaged ({why}); remove the folder {folder} and it is made again."
    )


def _write_about(folder: Path, about: Mapping[str, Any]) -> None:
    """Says what the files are, with the checksum of each."""
    sums = {name: sum for name, sum in checksums(folder).items() if name != _ABOUT}
    atomic_write(
        folder / _ABOUT, json.dumps({**about, "checksums": sums}, indent=1), is_shared=True
    )


def _check(folder: Path, title: str, content: Mapping[str, Any]) -> None:
    """Compares the files with their checksums; a folder of old, which has none, is given them.

    Raises:
      ValueError: a file is not what was written, or the folder is that of other content.
      PermissionError: they are another user's.
    """
    try:
        about = dict(json.loads((folder / _ABOUT).read_text(encoding="utf-8")))
        expected = about.get("checksums")
        changed_name = None if expected is None else changed_file(folder, dict(expected))
    except (ValueError, TypeError, FileNotFoundError) as error:
        raise damaged(folder, title, f"{_ABOUT}: {error}") from error
    if changed_name:
        raise damaged(folder, title, f"{changed_name} is not what was written")
    for name, value in json.loads(json.dumps(dict(content))).items():
        if about.get(name, value) != value:  # it was copied or renamed: its checksums are right
            raise damaged(folder, title, f"it is the folder of another {name}: {_ABOUT}")
    if expected is None:
        log.warning(
            "the files of the %s in %s are from before they had checksums: taken as they are now, "
            "and compared from here on; remove the folder to have them made again",
            title,
            folder,
        )
        with contextlib.suppress(PermissionError):
            _write_about(folder, about)
