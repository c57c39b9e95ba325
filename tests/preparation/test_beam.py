"""The program itself, on Beam: killed and run again, on one worker and on two."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from research.preparation.runner import Runner
from tests.helpers import tiny_run
from tests.preparation import corpus

pytest.importorskip("apache_beam", reason="tools/setup prepare")

pytestmark = pytest.mark.heavy
ROOT = Path(__file__).resolve().parents[2]
CONFIG = """
def get_config():
    return dict(
        sources=[
            dict(name="graft_web"),
            dict(name="graft_code"),
            dict(name="planted", kind="jsonl", path={folder!r} + "/planted.{{split}}.jsonl"),
        ],
        splits=["heldout"],
        tokenizer={folder!r} + "/tokenizer.json",
        quality=dict(exempt=["graft_code"]),
        contamination=dict(evaluations=[
            dict(source=dict(name="asked", kind="jsonl", path={folder!r} + "/asked.jsonl")),
        ]),
        rows=9,
    )
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Real documents beside planted copies, a tokenizer and a config."""
    folder = tmp_path_factory.mktemp("beam")
    texts = [corpus.prose(seed) for seed in range(20)]
    texts += [corpus.replace_words(text, 1, 1) for text in texts[:5]] + texts[5:8] + ["short"]
    corpus.write(folder / "planted.heldout.jsonl", texts)
    example_text = " ".join(texts[9].split()[20:40])
    (folder / "asked.jsonl").write_text(json.dumps({"text": example_text}) + "\n")
    corpus.tokenizer().save(folder / "tokenizer.json")
    (folder / "config.py").write_text(CONFIG.format(folder=str(folder)))
    return folder


# What works on every worker alike needs no second look on two of them.
FEWER = ("--config.contamination=None", "--config.quality=None")


def _start(folder, out, workers, *overrides, options=()):
    program = [sys.executable, "-m", "research.cli", "prepare"]
    line = [*program, "--config", str(folder / "config.py"), "--out", str(out), *overrides]
    line += ["--", f"--direct_num_workers={workers}", *options]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(line, cwd=folder, env=environment, **pipes)


def _run(folder, out, workers, *overrides):
    process = _start(folder, out, workers, *overrides)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


@pytest.fixture(scope="module")
def whole(folder):
    """What an undisturbed run of one worker writes, and says."""
    output = _run(folder, folder / "whole", 1)
    return corpus.content(folder / "whole"), output


def workers_of(process):
    """Ids of a process's children, which its threads started."""
    tasks = Path(f"/proc/{process.pid}/task")
    numbers: list[int] = []
    for task in tasks.iterdir():
        with contextlib.suppress(OSError):  # a thread that has ended meanwhile
            numbers += map(int, (task / "children").read_text().split())
    return numbers


PROCESSES = ["--runner=direct", "--direct_running_mode=multi_processing"]


@pytest.mark.parametrize(
    ("victim", "options"),
    [("worker", []), ("worker", PROCESSES), ("program", []), ("program", PROCESSES)],
)
def test_a_killed_worker_ends_the_program_and_a_killed_program_its_workers(
    folder, tmp_path, victim, options
):
    process = _start(folder, tmp_path / "killed", 2, *FEWER, options=options)
    tiny_run.wait_for(process, lambda: len(workers_of(process)) == 2)
    workers = workers_of(process)
    os.kill(workers[0] if victim == "worker" else process.pid, signal.SIGKILL)
    output, _ = process.communicate(timeout=120)  # as soon as nobody holds its output
    if victim == "worker":
        (line,) = [line for line in output.splitlines() if line.startswith("error: ")]
        assert process.returncode == 1 and "a worker process was killed" in line, output
        assert "Traceback" not in output
        _run(folder, tmp_path / "killed", 2, *FEWER)


def test_planted_documents_go_by_stage_and_rule(folder, whole):
    dataset = json.loads((folder / "whole" / "prepared.json").read_text())["dataset"]
    numbers = json.loads((folder / "whole" / dataset / "statistics.json").read_text())["heldout"]
    rules = numbers["planted"]["removed"]
    assert rules["quality"]["words"] == sum(rules["quality"].values()) == 1
    assert rules["contamination"] == {"asked": 1}
    assert (rules["exact"], rules["near"]) == ({"exact": 3}, {"near": 5})
    kept_names = [
        name for name in corpus.kept_names(folder / "whole", split="heldout") if "planted" in name
    ]
    assert kept_names == [f"planted/d{i}" for i in range(20) if i != 9]
    assert "near 5" in whole[1] and whole[1].rstrip().endswith("prepared.")


def test_two_worker_processes_write_the_same_bits_as_one(folder):
    _run(folder, folder / "one", 1, *FEWER)
    _run(folder, folder / "two", 2, *FEWER)
    assert corpus.content(folder / "two") == corpus.content(folder / "one")


def test_a_killed_run_goes_on_and_writes_the_same_bits(folder, whole):
    out = folder / "killed"
    process = _start(folder, out, 1)
    deadline = time.monotonic() + 120
    while not list(out.glob("stages/contamination-*/done.json")):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert not list(out.glob("stages/tokens-*/done.json")) and not (out / "prepared.json").exists()
    marker_times = {path: path.stat().st_mtime_ns for path in out.glob("stages/*/done.json")}
    message = _run(folder, out, 1)
    assert message.count("there already") == len(marker_times) >= 4
    assert {path: path.stat().st_mtime_ns for path in marker_times} == marker_times
    assert corpus.content(out) == whole[0]
    again = _run(folder, out, 1)
    assert again.count("there already") == 7 and "nothing to do" in again


def test_a_worker_process_says_which_line_is_broken(folder, tmp_path):
    lines = (folder / "planted.heldout.jsonl").read_text() + "{broken\n"
    (tmp_path / "planted.heldout.jsonl").write_text(lines)
    config = (folder / "config.py").read_text()
    config = config.replace(
        f'path={str(folder)!r} + "/planted', f'path={str(tmp_path)!r} + "/planted'
    )
    (tmp_path / "config.py").write_text(config)
    process = _start(tmp_path, tmp_path / "out", 2)
    message, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert f"{tmp_path}/planted.heldout.jsonl:30: not a line of JSON" in message
    assert "Traceback" not in message


def _fill(path):
    with open(path, "wb", buffering=0) as file:
        file.write(b"more")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_of_a_worker_is_one_line(workers):
    runner = Runner([f"--direct_num_workers={workers}"])
    with pytest.raises(OSError, match=r"^\[Errno 28\] No space left on device$"):
        runner.for_each(["/dev/full"], _fill)


def _stop(path):
    """Stops one of the workers that this reaches, as Ctrl-Z or a frozen container would."""
    with contextlib.suppress(FileExistsError):
        Path(path).touch(exist_ok=False)
        time.sleep(2)  # its first signs of life
        os.kill(os.getpid(), signal.SIGSTOP)


# In a process of its own: Beam's threads say that the worker ended when the test may be over.
STOPPED = """
import os, sys
from research.preparation.runner import Runner
from research.runtime import children
from tests.preparation.test_beam import _stop
children.SILENCE_LIMIT = 4.0
try:
    Runner(["--direct_num_workers=2"]).for_each([sys.argv[1]], _stop)
except ChildProcessError as error:
    print(error, flush=True)
    os._exit(0)
"""


def test_a_worker_that_is_stopped_ends_the_program_with_that_reason(tmp_path):
    command = [sys.executable, "-W", "ignore", "-c", STOPPED, str(tmp_path / "stopped")]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert process.returncode == 0, process.stderr
    assert re.match(r"a worker process \(\d+\) gave no sign of life for", process.stdout)


def test_options_that_beam_does_not_know_are_refused():
    with pytest.raises(ValueError, match="'--direct_num_wrokers'; did you mean '--direct_num_wor"):
        Runner(["--direct_num_wrokers=2"])
    with pytest.raises(ValueError, match="no option 'stray'"):
        Runner(["--runner=FlinkRunner", "--flink_master=host:1", "--parallelism=4", "stray"])
    with pytest.raises(ValueError, match="--direct_num_workers: invalid int value: 'many'"):
        Runner(["--direct_num_workers=many"])
