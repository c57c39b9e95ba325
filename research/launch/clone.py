"""The files of this clone that go to other machines: as they are here, without those that git
ignores."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

from research.launch.job import Shell
from research.runtime.files import atomic_path

FILES = ("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")


def files(folder: Path) -> list[str]:
    """Paths below the folder.

    Raises:
      ValueError: it is no clone.
    """
    listing = subprocess.run(FILES, cwd=folder, capture_output=True)
    if listing.returncode:
        raise ValueError(f"{folder} is no git clone: {listing.stderr.decode().strip()}")
    names = [name.decode() for name in listing.stdout.split(b"\0") if name]
    return [name for name in names if (folder / name).exists()]


def pack(folder: Path, archive: Path, shell: Shell) -> None:
    """Packs the files of a clone into a tar.gz file.

    Raises:
      ValueError: it is no clone, or could not be packed.
    """
    print(f"$ mkdir -p {shlex.quote(str(archive.parent))}", flush=True)
    print(f"$ {shlex.join(FILES)} | {shlex.join(_tar(archive))}", flush=True)
    if shell.dry_run:
        return
    names = "\0".join(files(folder)).encode()
    # whole or not at all: a launch of the same name may be reading the one that is there
    with atomic_path(archive) as partial:
        process = subprocess.run(_tar(partial), cwd=folder, input=names, capture_output=True)
        if process.returncode:
            raise ValueError(f"{archive} could not be written: {process.stderr.decode().strip()}")


def _tar(archive: Path) -> list[str]:
    """The command that packs the files whose names it reads."""
    return ["tar", "-czf", str(archive), "--null", "--files-from=-"]
