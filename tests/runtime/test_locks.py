"""Locks between processes: one holds it, and it dies with that one."""

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
    with pytest.raises(ValueError, match="^another one$"):
        locks.lock_until_exit(path, "another one")
    with pytest.raises(ValueError, match="^another one$"), locks.lock_file(path, "another one"):
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
