"""Removing checkpoints, and what killed saves left of them; never what lies beyond their folder."""

import logging
import os
import re
from pathlib import Path

from etils import epath

from research.checkpoints.checkpoint import MARKERS, scan
from research.runtime.files import check_no_link, remove
from research.runtime.storage import absolute, is_folder, is_remote

log = logging.getLogger(__name__)

# the name of a folder that an interrupted save leaves
LEFTOVER = re.compile(r"\d+\.orbax-checkpoint-tmp.*")


def remove_leftovers(directory: str | os.PathLike[str]) -> None:
    """Removes what killed saves left in a folder of checkpoints: steps begun or half removed.

    A step without commit marker that is newer than the complete ones stays.

    Raises:
      LinkError: the folder is a symbolic link.
    """
    folder = absolute(directory)
    if not is_folder(folder):
        return
    check_no_link(folder, folder.parent)
    steps, incomplete_steps = scan(folder)
    names = [path.name for path in folder.iterdir() if LEFTOVER.fullmatch(path.name)]
    names += [
        str(step)
        for step in incomplete_steps
        if steps and step < steps[-1] and is_folder(folder / str(step) / "state")
    ]
    for name in names:
        log.warning("removing %s, left by a save that was cut short", folder / name)
        remove(folder / name, folder)


def remove_step(path: epath.Path) -> None:
    """Removes a step's folder, such that it is never complete on the way; of a link the link alone.

    Raises:
      LinkError: the folder of all steps is a symbolic link.
    """
    directory = path.parent
    check_no_link(directory, directory.parent)
    if not is_remote(path) and Path(path).is_symlink():  # another run's, perhaps
        remove(path, directory)
        return
    for part in (*MARKERS, "files", "state", ""):
        remove(path / part, directory)
