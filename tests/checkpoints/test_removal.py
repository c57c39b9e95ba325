"""Removing checkpoints changes nothing outside their folder, wherever symbolic links are."""

import contextlib
import shutil
import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from research.checkpoints.removal import remove_leftovers
from research.checkpoints.retention import Retention
from research.checkpoints.step_folders import MARKERS, scan
from research.runtime.files import LinkError
from research.runtime.storage import absolute

STEPS = ("2", "4", "6", "8")
LEFTOVER = "9.orbax-checkpoint-tmp-1"
PLACES = [
    "checkpoints",
    "checkpoints/9.orbax-checkpoint-tmp-1",
    *(f"checkpoints/{step}" for step in STEPS[:3]),
    *(f"checkpoints/{step}/{part}" for step in STEPS[:3] for part in ("state", "files", "state/d")),
    *(f"checkpoints/2/{marker}" for marker in MARKERS),
]


def make_run(folder):
    """Steps as Orbax leaves them, and what a kill leaves."""
    for step in (*STEPS, LEFTOVER):
        for file in (*MARKERS, "files/metadata.json", "state/d/array"):
            path = folder / "checkpoints" / step / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{folder.name} {step} {file}")


def content(folder):
    return {path: path.read_text() for path in folder.rglob("*") if path.is_file()}


@given(
    links=st.lists(st.sampled_from(PLACES), min_size=1, max_size=3, unique=True),
    is_root_link=st.booleans(),
)
def test_another_runs_checkpoints_stay(links, is_root_link):
    with tempfile.TemporaryDirectory() as name:
        run, other = Path(name) / "run", Path(name) / "other"
        make_run(run)
        make_run(other)
        for place in links:  # each leads to the same place of the other run
            path = run / place
            if not any(parent.is_symlink() for parent in path.parents):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
                path.symlink_to(other / place)
        before = content(other)
        if is_root_link:  # as users link a run's folder to a large disk
            (Path(name) / "link").symlink_to(run)
            run = Path(name) / "link"
        retention = Retention(absolute(run / "checkpoints"), 1, 0, None, "min")
        for remove in (lambda: remove_leftovers(run / "checkpoints"), retention.prune):
            with contextlib.suppress(LinkError):
                remove()
        assert content(other) == before
        if "checkpoints" not in links:
            assert scan(run / "checkpoints") == ([8], [])
            assert not (run / "checkpoints" / LEFTOVER).exists()
