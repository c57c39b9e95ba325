"""The folders of a run's steps: which are complete, and what in them is not a save's."""

import os

from etils import epath

from research.runtime.storage import is_folder, is_remote, storage_errors

# Orbax writes both last; on gs://, where folders cannot be renamed, only the first counts.
MARKERS = ("commit_success.txt", "_CHECKPOINT_METADATA")
# all that a step's folder holds: Orbax writes a file of its own beside the markers
STEP_NAMES = frozenset({"state", "files", "orbax.checkpoint", *MARKERS})

# where a run in phases has the run of each, as NUMBER_NAME
PHASES = "phases"


def last_phase(folder: epath.Path) -> epath.Path:
    """Of a run in phases, the folder of the last that has begun; else the folder itself."""
    if not is_folder(folder / PHASES):
        return folder
    with storage_errors(folder):
        phases = {
            int(number): path
            for path in (folder / PHASES).iterdir()
            if (number := path.name.partition("_")[0]).isdecimal()
        }
    for number in sorted(phases, reverse=True):
        if any(scan(phases[number] / name)[0] for name in ("checkpoints", "model")):
            return phases[number]
    return folder


def scan(directory: epath.Path) -> tuple[list[int], list[int]]:
    """The steps in a checkpoints folder, ascending: (complete, incomplete)."""
    if not is_folder(directory):
        return [], []
    with storage_errors(directory):
        steps = sorted(int(path.name) for path in directory.iterdir() if path.name.isdecimal())
        complete = [step for step in steps if is_committed(directory / str(step))]
    return complete, sorted(set(steps) - set(complete))


def other_names(folder: epath.Path) -> list[str]:
    """What a step's folder holds that no save writes, so that it is not a run's to remove.

    In a bucket nothing is told: what a kill left there has many forms.
    """
    if is_remote(folder) or not os.path.lexists(folder):
        return []
    if not os.path.isdir(folder):
        return ["a file"]
    return sorted(name for name in os.listdir(folder) if name not in STEP_NAMES)


def is_committed(folder: epath.Path) -> bool:
    """Whether a step's folder has the markers of a whole save."""
    return all((folder / marker).exists() for marker in MARKERS)


def describe_incomplete(folder: epath.Path, steps: list[int]) -> str:
    """Why a folder with a step's number is none, and which of the complete `steps` is the last."""
    others = ", ".join(other_names(folder)[:3])
    cause = f"it has {others}, which no save wrote" if others else "its save was cut short"
    newest = f"the newest complete step is {steps[-1]}" if steps else "no step is complete"
    return f"{folder}: no commit marker, {cause}; {newest}"
