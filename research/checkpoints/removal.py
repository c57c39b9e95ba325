"""Removing checkpoints, and what killed saves left of them; never what lies beyond their folder."""

import logging
import os
import re
from pathlib import Path

from etils import epath

from research.checkpoints.checkpoint import CheckpointError
from research.checkpoints.step_folders import MARKERS, STEP_NAMES, other_names, scan
from research.runtime.files import check_no_link, remove
from research.runtime.storage import absolute, is_folder, is_remote

log = logging.getLogger(__name__)

# the name of a folder that an interrupted save leaves
LEFTOVER = re.compile(r"\d+\.orbax-checkpoint-tmp.*")


def remove_leftovers(directory: str | os.PathLike[str]) -> None:
    """Removes what killed saves left in a folder of checkpoints: steps begun or half removed.

    A step without commit marker that is newer than the complete ones stays, and so does one that
    holds what no save writes; that is said.

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
        if name.isdecimal() and (others := other_names(folder / name)):
            log.warning(
                "%s has no commit marker and is not removed: no save wrote %s in it",
                folder / name,
                ", ".join(others[:3]),
            )
            continue
        log.warning("removing %s, left by a save that was cut short", folder / name)
        remove(folder / name, folder)


def check_overwritable(path: epath.Path) -> None:
    """Refuses a folder in a step's place with what no save writes: a save removes what is there.

    Raises:
      CheckpointError: naming both.
    """
    if others := other_names(path):
        raise CheckpointError(
            f"{path} is in the place of step {path.name} and holds {', '.join(others[:3])}, "
            "which no save wrote: it is left as it is, and the steps before too. Move it away "
            "and start the same command again"
        )


def remove_step(path: epath.Path) -> None:
    """Removes a step's folder, such that it is never complete on the way; of a link the link alone.

    What no save wrote in it stays, and the folder with it; that is said.

    Raises:
      LinkError: the folder of all steps is a symbolic link.
    """
    directory = path.parent
    check_no_link(directory, directory.parent)
    if not is_remote(path) and Path(path).is_symlink():  # another run's, perhaps
        remove(path, directory)
        return
    others = other_names(path)
    for part in (*MARKERS, *sorted(STEP_NAMES - {*MARKERS}), *([] if others else [""])):
        remove(path / part, directory)
    if others:
        log.warning("%s was removed but for %s, which no save wrote", path, ", ".join(others[:3]))
