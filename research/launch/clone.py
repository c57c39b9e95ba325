"""What of this clone goes to other machines: its files as they are here, without those that git
ignores."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

from research.launch.job import Shell

FILES = ("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")


def files(folder: Path) -> list[str]:
    """Their paths below the folder.

    Raises:
      ValueError: it is no clone.
    """
    found = subprocess.run(FILES, cwd=folder, capture_output=True)
    if found.returncode:
        raise ValueError(f"{folder} is no git clone: {found.stderr.decode().strip()}")
    names = [name.decode() for name in found.stdout.split(b"\0") if name]
    return [name for name in names if (folder / name).exists()]


def pack(folder: Path, archive: Path, shell: Shell) -> None:
    """Puts them into a tar.gz file.

    Raises:
      ValueError: it is no clone, or could not be packed.
    """
    tar = lambda to: ["tar", "-czf", str(to), "--null", "--files-from=-"]  # noqa: E731
    print(f"$ mkdir -p {shlex.quote(str(archive.parent))}", flush=True)
    print(f"$ {shlex.join(FILES)} | {shlex.join(tar(archive))}", flush=True)
    if shell.dry_run:
        return
    archive.parent.mkdir(parents=True, exist_ok=True)
    names = "\0".join(files(folder)).encode()
    # whole or not at all: a launch of the same name may be reading the one that is there
    part = archive.with_name(f"{archive.name}.{os.getpid()}")
    done = subprocess.run(tar(part), cwd=folder, input=names, capture_output=True)
    if done.returncode:
        part.unlink(missing_ok=True)
        raise ValueError(f"{archive} could not be written: {done.stderr.decode().strip()}")
    part.replace(archive)
