"""Locks between processes: one holds it, and it dies with that one."""

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from research.runtime import locks

ROOT = Path(__file__).resolve().parents[2]
HOLDER = """if True:
    import sys, time
    from pathlib import Path
    from research.runtime import locks
    locks.lock_until_exit(Path(sys.argv[1]), "busy")
    print("ready", flush=True)
    time.sleep(600)
"""


def test_a_lock_is_refused_while_another_process_holds_it_and_dies_with_it(tmp_path):
    path = tmp_path / "folder" / ".lock"
    line = [sys.executable, "-c", HOLDER, str(path)]
    process = subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    holder = rf"^another one \(process {process.pid} on {platform.node()}, since 20.* UTC\)$"
    with pytest.raises(ValueError, match=holder):
        locks.lock_until_exit(path, "another one")
    with pytest.raises(ValueError, match=holder), locks.lock_file(path, "another one"):
        pass
    process.kill()
    process.wait()
    with locks.lock_file(path):  # waits for the other, which is gone
        pass
    locks.lock_until_exit(path, "another one")
    locks.lock_until_exit(path, "another one")  # the same process may


def test_a_lock_is_released_when_the_block_fails(tmp_path):
    path = tmp_path / ".lock"
    with pytest.raises(ZeroDivisionError), locks.lock_file(path, "busy"):
        raise ZeroDivisionError
    with locks.lock_file(path, "busy"):
        assert path.exists()


def test_a_lock_that_is_a_link_is_refused_and_its_target_stays(tmp_path):
    target = tmp_path / "target"
    target.write_text("another program's")
    (tmp_path / ".lock").symlink_to(target)
    with pytest.raises(OSError, match=r"\.lock is a symbolic link to .*target.*remove the link"):
        locks.lock_until_exit(tmp_path / ".lock", "busy")
    assert target.read_text() == "another program's"


def test_a_file_that_is_no_lock_is_not_written_over(tmp_path):
    path = tmp_path / ".lock"
    path.write_text("another program's")
    with locks.lock_file(path, "busy"):
        assert path.read_text() == "another program's"
    assert "does not say" in locks.describe_holder(path)


def test_a_lock_that_is_given_up_leaves_no_file(tmp_path):
    path = tmp_path / ".lock"
    locks.lock_until_exit(path, "busy")
    locks.remove_lock(path)
    assert not path.exists()
    with locks.lock_file(path, "busy"):
        assert f"process {os.getpid()} on" in locks.describe_holder(path)


def test_a_lock_whose_file_is_removed_replaced_or_moved_is_lost(tmp_path):
    path, other = tmp_path / "run" / ".lock", tmp_path / "other"

    def replace():
        path.unlink()
        with locks.lock_file(path, "busy"):  # nothing keeps another process out
            pass

    for change, message in (
        (path.unlink, r"\.lock was removed$"),
        (replace, rf"\.lock was replaced by another file \(process {os.getpid()} on"),
        (lambda: path.parent.rename(other), "run was moved or removed$"),
        (lambda: shutil.rmtree(path.parent), "run was moved or removed$"),
    ):
        locks.lock_until_exit(path, "busy")
        locks.check_held(path)
        change()
        with pytest.raises(locks.LockLostError, match=message):
            locks.check_held(path)
    path.parent.mkdir()
    path.write_text("another process's")
    locks.remove_lock(path)
    assert path.read_text() == "another process's"


def test_a_hard_link_to_another_lock_is_not_written_through(tmp_path):
    first, copy = tmp_path / "run" / ".lock", tmp_path / "copy" / ".lock"
    first.parent.mkdir()
    copy.parent.mkdir()
    first.write_text(json.dumps({"process": 1, "host": "a", "since": "2026"}))
    os.link(first, copy)
    before = first.read_bytes()
    with locks.lock_file(copy, "busy"):
        assert first.read_bytes() == before and not os.path.samefile(first, copy)
        with locks.lock_file(first, "busy"):  # another lock now
            pass
    copy.unlink()
    message = r"copy/\.lock is a hard link, .* remove it and start again"
    with locks.lock_file(first, "busy"):
        os.link(first, copy)
        with pytest.raises(ValueError, match=message), locks.lock_file(copy, "busy"):
            pass
    assert os.path.samefile(first, copy)
