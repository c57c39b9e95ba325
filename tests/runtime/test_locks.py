"""Locks between processes: one holds it, and it dies with that one."""

import os
import platform
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
