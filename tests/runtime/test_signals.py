"""Programs that a signal ends, at once and with one line, whatever they do."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from research.runtime import children

ROOT = Path(__file__).resolve().parents[2]
# a test runner in the background of a shell ignores Ctrl-C, and so do its children
BEGIN = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    "from research.runtime import signals; signals.end_program('graft test')\n"
)
LONG = 60  # seconds: the tests fail rather than wait for it


def start(text, *arguments, begin=BEGIN):
    """A program that prints a line when it is ready."""
    process = subprocess.Popen(
        [sys.executable, "-c", begin + textwrap.dedent(text), *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n", process.communicate()
    return process


@pytest.mark.parametrize(
    "text",
    [
        # in a library that does not come back
        """
        import ctypes
        print('ready', flush=True)
        while True:
            ctypes.CDLL(None).sleep(600)  # a signal interrupts it
        """,
        # in one that takes every exception for its own
        """
        import time
        print('ready', flush=True)
        while True:
            try:
                time.sleep(600)
            except BaseException:
                pass
        """,
        # while the main thread waits for another one
        """
        import threading, time
        thread = threading.Thread(target=time.sleep, args=(600,)); thread.start()
        print('ready', flush=True); thread.join()
        """,
    ],
)
@pytest.mark.parametrize(
    ("number", "status", "name"), [(signal.SIGINT, 130, "Ctrl-C"), (signal.SIGTERM, 143, "SIGTERM")]
)
def test_a_signal_ends_a_program_with_one_line(text, number, status, name):
    process = start(text)
    process.send_signal(number)
    output, errors = process.communicate(timeout=LONG)
    assert (process.returncode, output) == (status, "")
    assert errors == f"graft test: ended by {name}\n"


def test_the_line_says_what_is_saved_and_what_is_half_written_goes(tmp_path):
    process = start(
        """
        import sys, time
        from pathlib import Path
        from research.runtime import files
        signals.set_ending(lambda: f"{sum(1 for _ in Path(sys.argv[1]).iterdir())} files", 75)
        with files.atomic_folder(Path(sys.argv[1]) / "model") as partial:
            (partial / "weights").write_text("half")
            print("ready", flush=True)
            time.sleep(600)
        """,
        tmp_path,
    )
    assert len(list(tmp_path.iterdir())) == 1
    process.terminate()
    _, errors = process.communicate(timeout=LONG)
    assert (process.returncode, errors) == (75, "graft test: ended by SIGTERM; 1 files\n")
    assert not list(tmp_path.iterdir())


WAITING = """
import sys, time
request = signals.StopRequest()
with signals.collect(request):
    print("ready", flush=True)
    while not request.received:
        time.sleep(0.01)
    print("stopping", flush=True)
    time.sleep(1 if len(sys.argv) == 1 else 600)
print("saved", flush=True)
"""


def test_signals_to_a_process_and_its_group_are_one():
    process = start(WAITING)
    for _ in range(3):  # as `timeout` sends them
        process.terminate()
    output, errors = process.communicate(timeout=LONG)
    assert (process.returncode, output, errors) == (0, "stopping\nsaved\n", "")


def test_the_second_one_ends_what_the_first_one_did_not():
    process = start(WAITING, "long")
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "stopping\n"
    time.sleep(0.5)  # more than signals.SAME_SECONDS
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=LONG)
    assert (process.returncode, output) == (130, "")
    assert errors == "graft test: ended by Ctrl-C\n"


def test_a_signal_before_another_program_takes_the_place_is_heard_by_the_first():
    """`hold` waits for the thread that hears: `exec` would end it, and the signal be lost."""
    process = start(
        """
        import os, signal
        print("ready", flush=True)
        number = signal.SIGTERM
        os.write(signals._program.pipe, bytes([number]))  # what Python's handler does
        signals.hold()
        os.execv("/bin/echo", ["echo", "lost"])
        """
    )
    output, errors = process.communicate(timeout=LONG)
    assert (process.returncode, output) == (143, "")
    assert errors == "graft test: ended by SIGTERM\n"


def test_what_a_parent_ignores_stays_ignored_and_forked_children_are_their_own():
    ignoring = BEGIN.replace("signal.default_int_handler", "signal.SIG_IGN")
    process = start(
        """
        import os, signal, time
        print("ready", flush=True)
        time.sleep(1)
        child = os.fork()
        if not child:
            os.kill(os.getpid(), signal.SIGTERM)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        """,
        begin=ignoring,
    )
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=LONG)
    assert (process.returncode, output, errors) == (0, f"{-signal.SIGTERM}\n", "")


@pytest.mark.parametrize("hangs", [False, True])
def test_a_child_ends_with_its_parent_whatever_kills_that_one(tmp_path, hangs):
    if hangs and sys.platform != "linux":
        pytest.skip("where the kernel does not do it, a child that hangs stays")
    work = "import ctypes; ctypes.PyDLL(None).sleep(600)" if hangs else "time.sleep(600)"
    child = BEGIN + f"import time\nprint('ready', flush=True)\n{work}"
    parent = start(
        f"""
        import subprocess, sys, time
        from research.runtime import children
        environment = children.child_environment()
        child = subprocess.Popen(
            [sys.executable, "-c", {child!r}], env=environment, start_new_session=True
        )
        (open(sys.argv[1], "w")).write(str(child.pid))
        time.sleep(600)
        """,
        tmp_path / "child",
    )
    pid = int((tmp_path / "child").read_text())
    parent.kill()
    parent.stdout.read()  # until the child has closed it too
    deadline = time.monotonic() + LONG
    while is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_alive(pid)


def is_alive(pid):
    """Whether there is such a process that has not ended: nobody may wait for an orphan."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    return not (status.exists() and status.read_text().rpartition(")")[2].split()[0] == "Z")


def test_a_child_that_is_stopped_hears_that_it_shall_end():
    """By SIGSTOP, or Ctrl-Z: it would hear SIGTERM when it goes on, and its parent waits for it."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as process:
        process.send_signal(signal.SIGSTOP)
        os.waitpid(process.pid, os.WUNTRACED)
        children.ask_to_end(process)
        assert process.wait(timeout=60) == -signal.SIGTERM
