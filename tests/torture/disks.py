"""Full disks, links, folders that are taken away: one line says what is wrong, and what is there is
as it was."""

from __future__ import annotations

import hashlib
import shutil
import time
from pathlib import Path

from tests.torture import kills
from tests.torture.cases import Case, Family, PromiseError
from tests.torture.worlds import World


def families(world: World) -> list[Family]:
    def full(case: Case) -> str:
        return _fill(case, world)

    def links(case: Case) -> str:
        return _link(case, world)

    def folders(case: Case) -> str:
        return _lose(case, world)

    return [
        Family("lost folder", "graft train: one run a folder, and the same bits", folders),
        Family("full disk", "graft train: one error, and the same bits with more room", full),
        Family("links", "graft train: what a link leads to stays as it is", links),
    ]


def _fill(case: Case, world: World) -> str:
    """No file may grow beyond a limit, as on a disk that is full: mounting one needs a right."""
    workdir, limit = case.folder / "run", int(2 ** (8 + 9 * case.random.random()))
    status, output, errors = kills.finish(kills.start(world.train(workdir), world, limit))
    what = f"at most {limit} bytes a file: {status}\n{output}\n{errors}"
    (case.folder / "what.txt").write_text(what)
    if status and (status != 1 or "Traceback" in errors or errors.count("error: ") != 1):
        raise PromiseError(what[-3000:])
    again, output, errors = kills.finish(kills.start(world.train(workdir), world))
    if again:
        raise PromiseError(f"{what}\nwith more room: {again}: {errors[-2000:]}")
    kills.check_whole(workdir, world)
    return "one line" if status else "it had room"


def _link(case: Case, world: World) -> str:
    """Something of the folder is moved out and linked to."""
    choice, workdir, outside = case.random, case.folder / "run", case.folder / "outside"
    shutil.copytree(world.whole, workdir)
    (workdir / "summary.json").unlink()
    shutil.rmtree(workdir / "model")
    newest = max((workdir / "checkpoints").iterdir(), key=lambda path: int(path.name))
    if choice.random() < 0.7:  # the steps after an earlier checkpoint are to be done again
        shutil.rmtree(newest)
    files = [path for path in sorted(workdir.rglob("*")) if not path.is_symlink()]
    depth = choice.choice([1, 1, 2, 4])
    places = [path for path in files if len(path.relative_to(workdir).parts) <= depth]
    place = choice.choice(places)
    shutil.move(place, outside)
    place.symlink_to(outside)
    before = _digest(outside)
    status, output, errors = kills.finish(kills.start(world.train(workdir), world))
    what = f"{place.relative_to(workdir)} is a link: {status}\n{output}\n{errors}"
    (case.folder / "what.txt").write_text(what)
    if _digest(outside) != before:
        raise PromiseError(f"{what[:1500]}\nwhat it leads to was changed")
    if status and ("Traceback" in errors or errors.count("error: ") != 1):
        raise PromiseError(what[-3000:])
    if not status:
        kills.check_whole(workdir, world)
    return "one line" if status else "the same bits"


def _lose(case: Case, world: World) -> str:
    """Lock or folder are taken from a run that trains, and another start goes on there."""
    choice, workdir, other = case.random, case.folder / "run", None
    how = choice.choice(["lock", "lock, another start", "moved", "removed"])
    process = kills.start(world.train(workdir), world)
    deadline = time.monotonic() + 60
    while process.poll() is None and not (workdir / ".lock").exists():
        time.sleep(0.005)
        if time.monotonic() > deadline:
            raise PromiseError("there is no lock after 60 s")
    time.sleep(6 * choice.random() ** 1.5)
    place = case.folder / "moved" if how == "moved" else workdir
    if how == "moved":
        workdir.rename(place)
    elif how == "removed":
        shutil.rmtree(workdir, ignore_errors=True)  # the run may write meanwhile
    else:
        (workdir / ".lock").unlink()
    if how == "lock, another start":
        other = kills.start(world.train(workdir), world)
    status, output, errors = kills.finish(process)
    what = f"{how}: {status}\n{output}\n{errors}"
    (case.folder / "what.txt").write_text(what)
    if status not in (0, 1) or (status and errors.count("error: ") != 1) or "Traceback" in errors:
        raise PromiseError(what[-3000:])
    if how == "removed":
        shutil.rmtree(workdir, ignore_errors=True)
    again, output, errors = kills.finish(other or kills.start(world.train(place), world))
    if again:
        raise PromiseError(f"{what}\nthe start after it: {again}: {errors[-2000:]}")
    kills.check_whole(place, world)
    return "ended, and the same bits" if status else "it was over before"


def _digest(path: Path) -> str:
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    hasher = hashlib.sha256()
    for file in files:
        hasher.update(str(file.relative_to(path)).encode())
        hasher.update(file.read_bytes() if file.is_file() else b"")
    return hasher.hexdigest()
