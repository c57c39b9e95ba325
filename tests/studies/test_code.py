"""The hash of the code that results depend on: comments and docstrings are no part of it."""

import ast
import subprocess
import sys

import pytest

from research.runtime import code_hash
from research.studies import code
from tests.helpers.tiny_run import ROOT


def normalize(text, tmp_path):
    file = tmp_path / "module.py"
    file.write_text(text)
    return code_hash._normalized(file)


def test_layout_comments_and_docstrings_change_nothing(tmp_path):
    plain = normalize("def f(x):\n    return x + 1\n", tmp_path)
    assert plain == normalize(
        '"""Page."""\n\n\ndef f(\n    x\n):  # adds\n    """One."""\n    return (x + 1)\n', tmp_path
    )


def test_another_number_name_or_default_changes_it(tmp_path):
    texts = [
        "def f(x):\n    return x + 1",
        "def f(x):\n    return x + 2",
        "def f(y):\n    return y + 1",
    ]
    texts.append("def f(x=0):\n    return x + 1")
    assert len({normalize(text, tmp_path) for text in texts}) == 4


def test_it_covers_what_a_run_imports_and_no_report():
    modules = code_hash.reachable(code.ENTRIES)
    assert {"research.step", "research.methods.lora", "research.evaluation.tasks"} <= set(modules)
    assert not [
        name for name in modules if name.startswith(("research.studies", "research.launch"))
    ]
    for path in modules.values():
        ast.parse(path.read_text(encoding="utf-8"))


@pytest.mark.heavy
def test_another_process_with_another_hash_seed_finds_the_same():
    line = "from research.studies.code import code_hash; print(code_hash())"
    process = subprocess.run(
        [sys.executable, "-c", line],
        cwd=ROOT,
        env={"PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert process.stdout.strip() == code.code_hash()
