"""Control codes of data reach no terminal: in tables, rows, errors, log lines, answers, cards."""

import ast
import io
import json
import logging
import os
import pty
import sys
import unicodedata
from pathlib import Path

import pytest

from research.commands import inspect
from research.config import cli
from research.data.sources import JsonlConfig
from research.inspection import terminal as inspection
from research.reports.tables import text_table
from research.runtime import terminal
from tests.helpers import tiny_run

ROOT = Path(__file__).resolve().parents[2]
CLEAR, TITLE, CLIPBOARD = "\x1b[2J", "\x1b]0;title\x07", "\x1b]52;c;cm0gLXJm\x07"
OTHERS = "\x9b31m\x7f\x08\r\x00\u202egnp.\u2066\u2069\u061c\u200f\u2028\ud800"
HOSTILE = f"a{CLEAR}b{TITLE}c{CLIPBOARD}d{OTHERS}e"


def controls(text):
    """The characters of a text that a terminal may obey, or show in another order."""
    bidirectional = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
    return [
        char
        for char in text
        if (unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") and char not in "\n\t")
        or unicodedata.bidirectional(char) in bidirectional
        or char in "\u061c\u200e\u200f"
    ]


def test_every_control_is_spelt_out_and_nothing_else():
    every = "".join(map(chr, range(0x110000)))
    assert not controls(terminal.printable(every))
    for text in (
        "naïve 日本 \u0645\u0631\u062d\u0628\u0627",
        "👩\u200d🔬",
        "x\u00a0y\ty\nz",
        "क\u200dष",
    ):
        assert terminal.printable(text) == text
    assert terminal.printable("a\r\nb\rc") == "a\nb\\rc"
    assert terminal.printable("a\tb\n\x1b", lines=False) == "a\\tb\\n\\x1b"


def test_tables_have_none():
    table = text_table([{HOSTILE: HOSTILE, "n": 1}, {HOSTILE: "\t", "n": 2}])
    assert not controls(table) and "\t" not in table and len(table.splitlines()) == 4
    assert len({len(line) for line in table.splitlines()}) == 1
    assert not controls(inspection.verdict([HOSTILE])) and not controls(inspection.clean(HOSTILE))


@pytest.fixture
def hostile_config(world, tmp_path):
    """A tuning run on records of escape codes, in all their fields."""
    text = HOSTILE.replace("\ud800", "")  # JSON has no half of a pair
    rows = [{"prompt": f"{n % 3} {text}", "completion": text[: 9 + n % 2]} for n in range(9)]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (tmp_path / "rows.jsonl").write_text(lines, encoding="utf-8", newline="")
    source = JsonlConfig(f"name{CLEAR}", str(tmp_path / "rows.jsonl"))
    data = world.data("questions", objective=world.questions().objective, sources=(source,))
    return tiny_run.config_file(tmp_path, world.tuning(3, data=data))


@pytest.mark.parametrize("flags", [(), ("--rows", "3"), ("--row", "0", "--tokens")])
def test_graft_inspect_shows_none(hostile_config, capsys, flags):
    with pytest.raises(SystemExit):
        inspect.main(["--config", str(hostile_config), *flags])
    captured = capsys.readouterr()
    assert "\\x1b" in captured.out + captured.err
    assert not controls(captured.out + captured.err)


def test_errors_and_log_lines_have_none(capsys, monkeypatch):
    with pytest.raises(SystemExit) as end, cli.clear_errors():
        raise ValueError(HOSTILE)
    assert str(end.value).startswith("error: a\\x1b[2Jb") and not controls(str(end.value))
    stream = io.StringIO()
    handler, log = logging.StreamHandler(stream), logging.getLogger("test_terminal")
    log.addHandler(handler)
    log.warning("%s of it", HOSTILE)
    assert "of it" in stream.getvalue() and not controls(stream.getvalue())
    try:
        raise RuntimeError(HOSTILE)
    except RuntimeError as error:
        sys.excepthook(RuntimeError, error, error.__traceback__)
    text = capsys.readouterr().err
    assert "RuntimeError: a" in text and not controls(text)


def test_an_answer_is_whole_in_a_pipe_and_clean_on_a_terminal(capsys, monkeypatch):
    terminal.show_answer(HOSTILE.replace("\ud800", ""))
    assert capsys.readouterr().out == HOSTILE.replace("\ud800", "") + "\n"
    terminal.show_answer("\ud800")  # what no file takes
    assert capsys.readouterr().out == "?\n"
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w", encoding="utf-8") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        terminal.show_answer(HOSTILE)
        screen = os.read(ours, 4096).decode()
    os.close(ours)
    assert not controls(screen.replace("\r\n", "\n")) and "\\x1b[2J" in screen


def test_commands_print_through_it():
    own_styles = {"inspect.py"}  # which cleans what it puts styles around
    for path in (ROOT / "research" / "commands").glob("*.py"):
        calls = [
            node.lineno
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == "print"
            and node.args
        ]
        assert not calls or path.name in own_styles, f"{path}:{calls}"
