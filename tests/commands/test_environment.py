"""Every program in tools/ goes on in .venv, and says what to run where nothing is installed."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parent.parent.parent / "tools"
PROGRAMS = sorted(path.name for path in TOOLS.glob("*.py") if path.name != "environment.py")


@pytest.fixture
def copy(tmp_path):
    """The programs in a repository of their own, with nothing else in it."""
    (tmp_path / "tools").mkdir()
    for path in TOOLS.glob("*.py"):
        shutil.copy(path, tmp_path / "tools")
    return tmp_path


def run(folder, program):
    """Runs a program where no library is installed."""
    command = [sys.executable, "-S", str(folder / "tools" / program), "a b", "--c"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


@pytest.mark.parametrize("program", PROGRAMS)
def test_without_libraries_a_program_says_what_to_run(copy, program):
    done = run(copy, program)
    assert done.returncode == 1
    assert re.fullmatch(r"\w+ is not there: run tools/setup( \w+)?\n", done.stderr)


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_goes_on_in_the_environment_with_its_arguments(copy, program):
    python = copy / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    python.chmod(0o755)
    said = run(copy, program).stdout.splitlines()
    assert said == [str(copy / "tools" / program), "a b", "--c"]
