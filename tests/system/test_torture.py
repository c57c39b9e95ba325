"""A short run of tools/torture, always of the same cases."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.torture import damage
from tests.torture.cases import Case, PromiseError, one_line

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 60


@pytest.mark.heavy
def test_a_minute_of_faults(tmp_path):
    command = [sys.executable, "-m", "tests.torture", "--seed", "11", "--seconds", str(SECONDS)]
    process = subprocess.run(
        [*command, "--folder", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=20 * SECONDS,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    assert "| checkpoint" in process.stdout and "| signals" in process.stdout


def test_a_case_is_the_same_each_time_and_another_with_another_number(tmp_path):
    content = bytes(range(256)) * 9

    def damaged(number, seed):
        return damage.damage(content, Case("GGUF", number, seed, tmp_path).random)

    assert damaged(3, 7) == damaged(3, 7) != damaged(4, 7)
    assert all(damaged(number, 7)[0] != content for number in range(50))


def test_what_is_no_single_line_is_seen():
    assert one_line("step 3/9, loss 1.0\nWARNING:x:y\nerror: why\n") == "error: why"
    for text in ("", "a\nb\n", "Traceback (most recent call last):\nKeyError: 1\n"):
        with pytest.raises(PromiseError):
            one_line(text)
