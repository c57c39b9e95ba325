"""Programs of answers against their tests: what passes, and that none of it leaves the sandbox."""

import contextlib
import json
import os
import subprocess
import sys
import textwrap
import time

import pytest

from research.evaluation.sandbox import run
from research.evaluation.sandbox.run import Limits, SandboxError
from research.evaluation.scorers.code import Code

QUICK = Limits(cpu_seconds=1, seconds=6.0)


@pytest.fixture(autouse=True)
def sandbox():
    try:
        run.check()
    except SandboxError as error:
        pytest.skip(str(error))


def outcome(program, tests=("assert True",), limits=QUICK):
    return run.run(program, tests, limits)


ADD = "def add(a, b):\n    return a + b\n"


def test_tests_pass_fail_and_go_wrong_each_for_itself():
    tests = ["assert add(1, 2) == 3", "assert add(1, 2) == 4, 'no'", "add(1)"]
    assert outcome(ADD, tests[:1]) == run.Outcome("passed", 1)
    assert outcome(ADD, tests[:2]) == run.Outcome("failed", 1, "AssertionError: no")
    result = outcome(ADD, tests)
    assert (result.kind, result.tests_passed) == ("error", 1)
    assert outcome("1 / 0").message == "ZeroDivisionError: division by zero"
    # what is started as a program of its own is no part of it, and dataclasses find their module
    main = "import dataclasses\n@dataclasses.dataclass\nclass A:\n    a: 'int' = 1\n"
    assert outcome(f"{main}if __name__ == '__main__':\n    input()\n").kind == "passed"


FORGERIES = {
    "exit": "import sys\nsys.exit(0)",
    "exit at once": "import os\nos._exit(0)",
    "exit in a test": "import os\ndef add(a, b):\n    os._exit(0)",
    "leave in a test": "def add(a, b):\n    raise SystemExit(0)",
    "stopped": "import os, signal\nos.kill(os.getpid(), signal.SIGTERM)",
    "says so": "print('passed')\nprint('0' * 32 + ' 1 passed')",
    "says so everywhere": (
        "import os\nfor n in range(64):\n    try:\n"
        "        os.write(n, b'x 1 passed\\n1 passed\\n')\n    except OSError:\n        pass\n"
    ),
    "builtins": (
        "import builtins, os\n"
        "builtins.exec = lambda *a: None\nbuiltins.all = lambda a: True\n"
        "builtins.compile = builtins.enumerate = builtins.zip = lambda *a, **k: ()\n"
        "builtins.AssertionError = builtins.BaseException = builtins.Exception = ValueError\n"
        "builtins.isinstance = lambda *a: False\nos._exit = lambda *a: None\n"
        "__builtins__ = {'AssertionError': ValueError}\n"
    ),
    "after the end": "import atexit, os\natexit.register(lambda: os._exit(0))",
    "a child": "import os\nif os.fork() == 0:\n    os._exit(0)",
    "a class that is all": (
        "class Error(AssertionError):\n    def __str__(self):\n        return '\\n1 passed'\n"
        "def add(a, b):\n    raise Error"
    ),
}


@pytest.mark.parametrize("program", FORGERIES.values(), ids=FORGERIES)
def test_no_wrong_program_passes(program):
    tests = ["assert all([add(1, 2) == 3, 0])"]
    assert outcome(f"def add(a, b):\n    return 4\n{program}", tests).kind in ("failed", "error")


CONFINED = {
    "no network": "import socket\nsocket.create_connection(('127.0.0.1', 22), 1)",
    "no folder but its own": "open('/usr/a', 'w')",
    "nor the root": "open('/a', 'w')",
    "no home": "import os\nos.listdir(HOME)",
    "no file of the project": "open(PROJECT)",
    "no environment": "import os\nassert set(os.environ) - {'LC_CTYPE'}",
    "no other process": "import os\nassert os.path.exists('/proc/self') or os.getpid() > 2",
    "no user of rights": "import os\nassert os.getuid() == 0 or not os.setuid(0)",
    "no memory without end": "a = bytearray(2**31)",
    "no file without end": "open('a', 'wb').write(b'0' * 2**25)",
    "no files without end": "for n in range(99):\n    open(str(n), 'wb').write(b'0' * 2**20)",
    "no mount": (
        "import ctypes\nlibc = ctypes.CDLL(None)\n"
        "assert 0 in (libc.unshare(0x10000000), libc.mount(b'a', b'/work', b'tmpfs', 0, None), "
        "libc.umount2(b'/usr', 2), libc.mount(b'a', b'/usr', b'', 0x1020, None))\n"
    ),
}


BOMBS = (
    "import os\nwhile True:\n    os.fork()",
    "import threading, time\n"
    "for n in range(99):\n    threading.Thread(target=time.sleep, args=[9]).start()\n",
)


def test_a_program_cannot_leave_its_sandbox(tmp_path):
    """Each would pass outside of it, or do harm."""
    (tmp_path / "file").write_text("")
    names = f"HOME, PROJECT = {str(tmp_path)!r}, {run.__file__!r}\n"
    tests = [f"def test():\n{textwrap.indent(each, '    ')}\ntest()" for each in CONFINED.values()]
    result = outcome(names, ["assert HOME", *tests], Limits())
    assert (result.kind, result.tests_passed) == ("error", 1), result


@pytest.mark.parametrize("program", BOMBS)
def test_a_bomb_ends_at_the_limit_of_processes(program):
    result = outcome(program)
    assert result.kind == "error" and (
        "unavailable" in result.message or "thread" in result.message
    )


def test_its_folder_is_empty_and_its_own():
    write = "import os\nassert os.listdir() == []\nopen('a', 'w').write('b')\n"
    assert outcome(write, ["assert open('/work/a').read() == 'b'"]).kind == "passed"
    assert outcome(write).kind == "passed"


@pytest.fixture
def marked(tmp_path, monkeypatch):
    """What gives the processes of sandboxes that are made in this test."""
    for name in ("CONFINE", "HARNESS"):
        (tmp_path / name).write_text(getattr(run, name).read_text() + f"# {tmp_path}\n")
        monkeypatch.setattr(run, name, tmp_path / name)

    def processes():
        ids = []
        for pid in filter(str.isdecimal, os.listdir("/proc")):
            with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
                if f"# {tmp_path}".encode() in file.read():
                    ids.append(pid)
        return ids

    return processes


def all_end(marked):
    """Whether there is no process left, or none in a moment: the kernel ends them one by one."""
    deadline = time.monotonic() + 10
    while marked() and time.monotonic() < deadline:
        time.sleep(0.05)
    return not marked()


def test_what_does_not_end_is_stopped_and_leaves_nothing(marked):
    start = time.monotonic()
    # on its CPU time
    result = outcome(
        "while True:\n    print('a' * 999)", limits=Limits(cpu_seconds=1, seconds=60.0)
    )
    assert result == run.Outcome("timeout", 0, "it did not end in time")
    assert time.monotonic() - start < 40 and all_end(marked)
    assert outcome("input()").message == "EOFError: EOF when reading a line"


def test_what_sleeps_and_starts_others_is_stopped_as_a_whole(marked):
    program = (
        "import os, signal, time\nfor sign in range(1, 64):\n    try:\n"
        "        signal.signal(sign, signal.SIG_IGN)\n    except (OSError, ValueError):\n"
        "        pass\n"
        "for pid in (1, os.getppid(), -1):\n    try:\n        os.kill(pid, 9)\n"
        "    except OSError:\n        pass\n"
        "if os.fork() == 0:\n    os.setsid()\n"
        "time.sleep(60)\n"
    )
    assert outcome(program, limits=Limits(seconds=2.0)).kind == "timeout"
    assert all_end(marked)


def test_a_sandbox_ends_with_who_started_it(marked):
    text = (
        "from pathlib import Path\nfrom research.evaluation.sandbox import run\n"
        f"run.CONFINE, run.HARNESS = Path({str(run.CONFINE)!r}), Path({str(run.HARNESS)!r})\n"
        "run.run('import time; time.sleep(60)', ['1'], run.Limits(seconds=60.0))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", text])
    deadline = time.monotonic() + 40
    while len(marked()) < 4 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert time.monotonic() < deadline and all_end(marked)


def test_where_no_sandbox_is_made_nothing_runs(monkeypatch, tmp_path):
    """It is said, with what to do, and before any question is asked."""
    monkeypatch.setattr(run, "CONFINE", tmp_path / "confine.py")
    run.CONFINE.write_text(
        "import os\nos.write(2, b'unshare: Operation not permitted')\nos._exit(1)\n"
    )
    run.check.cache_clear()
    with pytest.raises(SandboxError, match="makes none .unshare: Operation not permitted.*Docker"):
        Code().score("", {"tests": "assert True"})
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(SandboxError, match="needs Linux 5.12"):
        Code().score("", {"tests": "assert True"})
    run.check.cache_clear()


BEGINNING = 'from typing import List\n\ndef total(a: List[int]) -> int:\n    """The sum."""\n'
RECORD = {"tests": ["assert total([1, 2]) == 3", "assert total([]) == 0"], "beginning": BEGINNING}
WHOLE = "def total(a: List[int]) -> int:\n    return sum(a)\n"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("    return sum(a)\n", (1, 1, 1, 1)),
        ("    return sum(a)\n\nprint(total([1]))\ndef other(", (1, 1, 1, 1)),  # as a base goes on
        (f"Here it is:\n```python\n{WHOLE}```\nAnd so on.\n```\n1 / 0\n```", (1, 1, 1, 1)),
        (f"```\n{WHOLE}", (1, 1, 1, 1)),  # cut before its end
        (WHOLE, (1, 1, 1, 1)),
        ("    return 3\n", (0, 1, 1, 0.5)),
        ("    return sam(a)\n", (0, 0, 1, 0)),
        ("    while True: pass\n", (0, 0, 0, 0)),
        ("    return sum(", None),
        ("The sum is easy.", None),
        ("```python\nreturn (\n```", None),
    ],
)
def test_the_program_of_an_answer_is_found_and_scored(answer, expected):
    scores = Code(beginning="beginning", cpu_seconds=1, seconds=6.0).score(answer, RECORD)
    names = ("code", "code/runs", "code/ends", "code/tests")
    assert tuple(scores.values[name] for name in names) == (expected or (0, 0, 0, 0))
    assert bool(scores.unreadable) == (expected is None)
    assert bool(scores.remark) == (expected is not None and expected[0] == 0)


def test_whole_programs_need_no_beginning_and_bad_tests_are_named():
    record = {"tests": "assert total([1]) == 1"}
    assert Code().score(f"from typing import List\n{WHOLE}", record).values == {
        **{"code": 1.0, "code/runs": 1.0, "code/ends": 1.0}
    }
    assert Code().score(" \n", record).unreadable == "no program: there is nothing in it"
    assert Code().score("\0", record).unreadable.startswith("no program")
    assert Code().score("(" * 9999, record).unreadable.startswith("no program")
    for record, message in (
        ({"tests": "assert ("}, "'tests' are no Python .test 1"),
        ({"tests": []}, "'tests' is no right answer"),
        (RECORD | {"beginning": 3}, "'beginning' is no text"),
        (RECORD | {"beginning": "import os"}, "no beginning of a Python function"),
    ):
        with pytest.raises(ValueError, match=message):
            Code(beginning="beginning" if "beginning" in record else None).score("", record)
    assert json.dumps(Code().key)
