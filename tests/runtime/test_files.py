"""Files and folders that appear whole or not at all."""

import contextlib
import errno
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.runtime import files

ROOT = Path(__file__).resolve().parents[2]
PLACES = ("a", "a/b", "a/b/c", "a/e", "f", "new")
TARGETS = ("", "a", "a/b", "a/b/c", "f", "missing")


def test_a_file_is_replaced_and_nothing_else_is_left(tmp_path):
    path = tmp_path / "new" / "file.txt"
    files.atomic_write(path, "first")
    files.atomic_write(path, b"second")
    assert path.read_text() == "second" and list(path.parent.iterdir()) == [path]


def test_a_block_that_fails_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "file.txt"
    files.atomic_write(path, "whole")
    with pytest.raises(ZeroDivisionError), files.atomic_path(path) as partial:
        partial.write_text("torn")
        raise ZeroDivisionError
    assert path.read_text() == "whole" and list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_told_with_the_file(tmp_path):
    path = tmp_path / "file.txt"
    message = f"No space left on device: '{path}'"
    with pytest.raises(OSError, match=message), files.atomic_path(path) as partial:
        partial.write_text("torn")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert not any(tmp_path.iterdir())


def test_a_folder_appears_when_it_is_whole(tmp_path):
    folder = tmp_path / "folder"
    with pytest.raises(ZeroDivisionError), files.atomic_folder(folder) as partial:
        (partial / "file").touch()
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())
    folder.mkdir()  # an empty one is in nobody's way
    with files.atomic_folder(folder) as partial:
        (partial / "file").touch()
        assert not list(folder.iterdir())
    assert list(tmp_path.rglob("*")) == [folder, folder / "file"]
    with pytest.raises(OSError), files.atomic_folder(folder) as partial:
        (partial / "other").touch()
    assert list(tmp_path.rglob("*")) == [folder, folder / "file"]


def test_a_copy_is_the_file(tmp_path):
    (tmp_path / "file").write_bytes(b"\0\1")
    files.atomic_copy(tmp_path / "file", tmp_path / "new" / "copy")
    assert (tmp_path / "new" / "copy").read_bytes() == b"\0\1"


def test_numbers_that_json_lacks_are_null(tmp_path):
    content = {"loss": math.nan, "rates": [math.inf, 1.5], "steps": (1, 2), "name": None}
    files.write_json(tmp_path / "a.json", content)
    expected = {"loss": None, "rates": [None, 1.5], "steps": [1, 2], "name": None}
    assert json.loads((tmp_path / "a.json").read_text()) == expected


def test_of_many_writers_one_wins(tmp_path):
    path = tmp_path / "file"

    def write(number):
        for _ in range(20):
            files.atomic_write(path, str(number) * 10_000)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    text = path.read_text()
    assert text == text[0] * 10_000 and list(tmp_path.iterdir()) == [path]


def write_and_hang(path, create):
    """Writes a part of a file or a folder in a process of its own, which is then killed."""
    program = f"""if True:
        import time
        from pathlib import Path
        from research.runtime import files
        with files.{create}(Path({str(path)!r})) as partial:
            (partial / "a" if partial.is_dir() else partial).write_text("half")
            print("ready", flush=True)
            time.sleep(600)"""
    line = [sys.executable, "-c", program]
    process = subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("create", ["atomic_path", "atomic_folder"])
def test_what_a_killed_process_left_is_removed_when_it_is_written_again(tmp_path, create):
    path = tmp_path / "name"
    process = write_and_hang(path, create)
    with getattr(files, create)(path) as partial:  # beside one that is being written
        (partial / "a" if partial.is_dir() else partial).write_text("whole")
        assert len(list(tmp_path.iterdir())) == 2
    assert len(list(tmp_path.iterdir())) == 2, "it is not in use by us, but by another process"
    process.kill()
    process.wait()
    (tmp_path / "other").touch()
    if create == "atomic_folder":
        shutil.rmtree(path)
    with getattr(files, create)(path) as partial:
        (partial / "a" if partial.is_dir() else partial).write_text("whole")
        assert {*tmp_path.iterdir()} - {path} == {partial, tmp_path / "other"}


@given(
    links=st.lists(st.tuples(st.sampled_from(PLACES), st.sampled_from(TARGETS)), max_size=3),
    path=st.sampled_from(PLACES),
    is_root_link=st.booleans(),
)
def test_nothing_outside_the_folder_is_removed_wherever_links_are(links, path, is_root_link):
    with tempfile.TemporaryDirectory() as name:
        outside, folder = Path(name) / "outside", Path(name) / "folder"
        for place in (outside, folder):
            for file in ("a/b/c", "a/b/d", "a/e", "f"):
                (place / file).parent.mkdir(parents=True, exist_ok=True)
                (place / file).write_text(file)
        before = content(outside)
        for place, target in links:
            with contextlib.suppress(OSError):  # its folder is gone
                files.remove(folder / place, folder)
                (folder / place).symlink_to(outside / target)
        root = folder
        if is_root_link:
            root = Path(name) / "root"
            root.symlink_to(folder)
        is_through = any((root / p).is_symlink() for p in list(Path(path).parents)[:-1])
        try:
            files.remove(root / path, root)
        except files.LinkError as error:
            assert is_through and "is a symbolic link to" in str(error)
        else:
            assert not is_through and not os.path.lexists(root / path)
        assert content(outside) == before


def content(folder):
    return {path: path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_what_is_shared_is_readable_as_its_folder_whatever_the_umask(tmp_path):
    for mode, folder_mode, file_mode in (
        (0o755, 0o755, 0o644),
        (0o1777, 0o755, 0o644),
        (0o2770, 0o750, 0o640),
        (0o700, 0o700, 0o600),
    ):
        cache = tmp_path / f"{mode:o}"
        cache.mkdir()
        cache.chmod(mode)
        before = os.umask(0o077)
        try:
            with files.atomic_folder(cache / "entry") as partial:
                (partial / "a").write_text("a")
                (partial / "link").symlink_to(tmp_path)
                files.share(partial, cache)
            files.atomic_write(cache / "note", "b", is_shared=True)
        finally:
            os.umask(before)
        modes = [(cache / name).stat().st_mode & 0o777 for name in ("entry", "entry/a", "note")]
        assert modes == [folder_mode, file_mode, file_mode]
