"""What watches a run neither blocks nor ends it, and says once what it loses."""

import logging
import os
import threading
import time

import pytest

from research.training import metrics, observers
from research.training.observers import Observer, TensorBoard
from research.training.progress import Progress

LONG = 60  # seconds: the tests fail rather than wait for it


def wait_until(ready):
    deadline = time.monotonic() + LONG
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_an_observer_that_does_not_answer_is_not_waited_for(caplog):
    observer, event = Observer("the bar"), threading.Event()
    for _ in range(3 * observers.WAITING):
        observer.push(event.wait)
    assert not observer.wait(seconds=0.01)
    observer.close(seconds=0.01)
    wait_until(lambda: caplog.records)
    event.set()
    (record,) = caplog.records
    assert "the bar loses something: it does not keep up" in record.getMessage()


def test_an_error_of_an_observer_is_said_once_and_later_calls_are_made(caplog):
    calls, observer = [], Observer("TensorBoard")

    def fail():
        raise OSError(28, "No space left on device")

    for call in (fail, fail, lambda: calls.append(1)):
        observer.push(call)
    observer.close()
    wait_until(lambda: caplog.records)
    assert calls == [1] and len(caplog.records) == 1
    assert "No space left on device" in caplog.text and "The run goes on" in caplog.text


def test_a_clock_set_back_blocks_no_curve(tmp_path, monkeypatch):
    year = 365 * 86400
    now = time.time()
    times = iter([now + year] * 5)
    monkeypatch.setattr(time, "time", lambda: next(times, now))
    board = TensorBoard(tmp_path, 1)
    for step in range(1, 100):
        board.write(step, {"loss": 1.0})
    assert board.wait(LONG)
    (file,) = tmp_path.iterdir()
    assert file.stat().st_size > 99 * 30  # bytes of a step at least: a name, a number, a time
    board.close()


def test_a_pipe_that_nobody_reads_does_not_hold_the_progress_bar():
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with os.fdopen(writing, "w") as stream:
        while True:  # until it is full
            try:
                os.write(writing, b"x" * 4096)
            except BlockingIOError:
                break
        os.set_blocking(writing, True)
        bar = Progress(2000, stream=stream, interval=0)
        for step in range(1, 2001):
            bar.update(step, 1.0, 1)
        bar._observer.close(seconds=0.01)
        os.read(reading, 2**20)  # lets the thread go on, before its pipe is closed
        bar.close()
    os.close(reading)


def test_a_program_without_standard_error_shows_no_bar(monkeypatch):
    monkeypatch.setattr("sys.stderr", None)
    with Progress(2) as bar:
        bar.update(1, 1.0, 1)


def test_the_record_of_a_run_is_waited_for_and_its_loss_ends_the_run(tmp_path, monkeypatch):
    writer = metrics.MetricsWriter(tmp_path)
    writer.write(1, {"loss": 1.0})
    writer._file.close()
    writer._file = os.fdopen(os.open("/dev/full", os.O_WRONLY), "w")
    monkeypatch.setattr(writer, "_keep_file", bool)  # it would go back to the file of that name
    message = r"metrics\.jsonl: the metrics of step 2 could not be .* Free disk space, and"
    with pytest.raises(OSError, match=message):
        writer.write(2, {"loss": 1.0})
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1


def test_what_a_run_prints_may_be_read_by_nobody(tmp_path, monkeypatch, caplog):
    with open("/dev/full", "w") as full:
        spare = os.dup(full.fileno())
        monkeypatch.setattr("sys.stdout", full)
        with caplog.at_level(logging.WARNING):
            observers.show("a plan")
            observers.show("a summary")
        os.close(spare)
    assert len(caplog.records) == 1 and "The run goes on" in caplog.text
