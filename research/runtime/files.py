"""Files and folders that appear whole or not at all, whatever kills the process that writes them.

They are written under a name of their own beside their place, flushed to the disk, and renamed, so
that several processes may write the same one at once. In a bucket every object appears whole.

What a killed process left of one is removed when it is written again. No symbolic link leads what
is removed or written over out of the folder that a program may change.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import math
import os
import platform
import re
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from research.runtime import signals, storage


class LinkError(OSError):
    """A symbolic link where a program removes or writes; the message names it and the remedy."""


def remedy(error: OSError) -> str:
    """What to do about a file that could not be written, for the end of an error's message."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "free disk space"
    if error.errno == errno.EFBIG:
        return "raise the limit on the size of files (ulimit -f)"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "let this user write there"
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ESTALE):
        return "put back what was there"
    return "mend that"


def check_no_link(path: str | os.PathLike[str], root: str | os.PathLike[str]) -> None:
    """Refuses a path that leads out of the folder `root`; `root` itself may be a link.

    Raises:
      LinkError: the path, or a folder of it below `root`, is a symbolic link.
    """
    if storage.is_remote(path):
        return
    place = Path(root)
    for name in Path(path).relative_to(root).parts:
        place = place / name
        if place.is_symlink():
            raise LinkError(
                f"{place} is a symbolic link to {os.readlink(place)}, and what lies outside {root} "
                "is not changed from here: remove the link, or put there what it leads to"
            )


def check_inside(path: Path, root: Path) -> None:
    """Refuses a file to read that lies outside the folder `root`, through a symbolic link.

    Raises:
      LinkError: it does.
    """
    if not path.resolve().is_relative_to(root.resolve()):
        raise LinkError(
            f"{path} leads to {path.resolve()}, outside {root}: put a copy there in place of the "
            "link"
        )


def remove(path: str | os.PathLike[str], root: str | os.PathLike[str]) -> None:
    """Removes a file or a whole folder below `root`, if it is there; of a link the link alone.

    Raises:
      LinkError: a folder between `root` and the path is a symbolic link.
    """
    if storage.is_remote(path):
        place = storage.absolute(path)
        if storage.is_folder(place):
            place.rmtree(missing_ok=True)
        else:
            place.unlink(missing_ok=True)
        return
    check_no_link(os.path.dirname(path), root)
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        Path(path).unlink(missing_ok=True)


def share(path: Path, folder: Path) -> None:
    """Lets everyone read a file or whole folder of ours who may read `folder`, whatever the umask.

    As git does with the objects of a shared repository: rights to write are not given.
    """
    bits = folder.stat().st_mode & (stat.S_IRGRP | stat.S_IXGRP | stat.S_IROTH | stat.S_IXOTH)
    for place in (path, *path.rglob("*")):
        status = place.lstat()
        is_folder = stat.S_ISDIR(status.st_mode)
        new_bits = bits if is_folder else bits & (stat.S_IRGRP | stat.S_IROTH)
        is_ours = status.st_uid == os.geteuid() and not stat.S_ISLNK(status.st_mode)
        if is_ours and new_bits & ~status.st_mode:
            place.chmod(stat.S_IMODE(status.st_mode) | new_bits)


def make_shared_folder(folder: Path) -> None:
    """Makes a folder in which all may read or write who may do so in the folder above it.

    What each puts there stays theirs. One that is there is opened likewise, if it is ours.
    """
    folder.mkdir(parents=True, exist_ok=True)
    status, above = folder.stat(), folder.parent.stat().st_mode
    if above & (stat.S_IWGRP | stat.S_IWOTH):
        bits = stat.S_IMODE(above) | stat.S_ISVTX
    else:
        bits = above & (stat.S_IRGRP | stat.S_IXGRP | stat.S_IROTH | stat.S_IXOTH)
    if status.st_uid == os.geteuid() and bits & ~status.st_mode:
        folder.chmod(stat.S_IMODE(status.st_mode) | bits)


def atomic_write(
    path: str | os.PathLike[str], content: bytes | str, *, is_shared: bool = False
) -> None:
    """Writes a file; its folder is made.

    Args:
      is_shared: of a disk: readable for all who may read its folder, see `share`.

    Raises:
      StorageError: the bucket refuses or does not answer.
    """
    data = content.encode() if isinstance(content, str) else content
    if storage.is_remote(path):
        storage.upload_bytes(data, storage.absolute(path))
        return
    with atomic_path(Path(storage.absolute(path))) as partial:
        partial.write_bytes(data)
        if is_shared:
            share(partial, partial.parent)


def write_if_other(path: Path, text: str) -> None:
    """Writes a text whole or not at all, unless the file says it already."""
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        atomic_write(path, text)


def atomic_copy(file: Path, path: str | os.PathLike[str]) -> None:
    """Copies a file of a disk, of any size.

    Raises:
      StorageError: the bucket refuses or does not answer.
    """
    if storage.is_remote(path):
        storage.upload_file(file, storage.absolute(path))
        return
    with atomic_path(Path(storage.absolute(path))) as partial:
        shutil.copyfile(file, partial)


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Writes a JSON file; numbers that are not finite become null."""
    atomic_write(path, json_text(content))


def json_text(content: Any) -> str:
    """The content of such a file."""
    return json.dumps(_finite(content), indent=2, allow_nan=False) + "\n"


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A path beside `path`, on a disk; the file that is written there takes the place of `path`.

    If the block raises, it is removed and `path` stays as it was.
    """
    try:
        with _locked_partial(path, Path.touch) as partial:
            yield partial
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            partial.replace(path)
    except OSError as error:
        if error.errno and error.filename is None:  # of a full disk the system does not say which
            error.filename = str(path)
        raise


@contextlib.contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """An empty folder beside `folder`, on a disk, which is renamed to it when the block ends.

    If the block raises, it is removed.

    Raises:
      OSError: there is such a folder, and it is not empty.
    """
    with _locked_partial(folder, Path.mkdir) as partial:
        yield partial
        partial.replace(folder)


@contextlib.contextmanager
def _locked_partial(path: Path, create: Callable[[Path], None]) -> Iterator[Path]:
    """A new file or folder beside `path`, locked while the block runs and removed after it.

    The lock tells it from those of killed processes, which are removed first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale_partials(path)
    while True:
        partial = path.with_name(f".{path.name}.{_host()}.{uuid.uuid4().hex}.partial")
        create(partial)
        try:
            descriptor = os.open(partial, os.O_RDONLY)
        except FileNotFoundError:  # another process took it for a stale one before it was locked
            continue
        with contextlib.suppress(OSError):  # a file system without locks, where none is removed
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        if partial.exists():
            break
        os.close(descriptor)
    try:
        with signals.cleanup(lambda: remove(partial, path.parent)):
            yield partial
    finally:
        with contextlib.suppress(OSError):  # the error of the block counts
            remove(partial, path.parent)
        os.close(descriptor)


def _remove_stale_partials(path: Path) -> None:
    """Removes what killed processes of this host left when they wrote `path`."""
    name = re.compile(rf"\.{re.escape(path.name)}\.{re.escape(_host())}\.[0-9a-f]{{32}}\.partial")
    for partial in path.parent.iterdir():
        if not name.fullmatch(partial.name):
            continue
        with contextlib.suppress(OSError):  # it is gone, another user's, or being written
            descriptor = os.open(partial, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                remove(partial, path.parent)
            finally:
                os.close(descriptor)


def _host() -> str:
    """The name of this machine, as a part of a file's name; locks may not reach beyond it."""
    return re.sub(r"[^\w-]", "-", platform.node())[:64]


def _finite(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
