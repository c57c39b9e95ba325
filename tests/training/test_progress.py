"""The progress bar: rate, time left and share of the peak, as a clock gives them."""

import io
import time

import pytest

from research.training import progress
from research.training.progress import Progress


def test_only_process_zero_shows_anything_and_a_sink_is_told_anyway() -> None:
    stream = io.StringIO()
    steps: list[tuple[object, ...]] = []

    def sink(*report: object) -> None:
        steps.append(report)

    with Progress(10, enabled=False, stream=stream, interval=0, sink=sink) as bar:
        bar.update(9, 1.0, 5)
        bar.update(10, 1.0, 5)
    assert stream.getvalue() == ""
    assert [report[:2] for report in steps] == [(9, 10), (10, 10)] and steps[0][2] is None


class Clock:
    """Stands in for the `time` module; moves only when told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(progress, "time", self)

    def monotonic(self) -> float:
        return self.now


def test_rate_left_and_utilisation_exclude_compilation_and_pauses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, stream = Clock(monkeypatch), io.StringIO()
    bar = Progress(100, 10, flops_per_token=6e6, peak_flops=3e9, stream=stream, interval=0)
    clock.now += 60  # compilation
    bar.update(11, 2.0, 512)
    assert bar.tokens_per_second is None and bar.seconds_left is None
    for step in (12, 14):
        clock.now += 2
        with bar.pause():
            clock.now += 500
        bar.update(step, 1.5, 400)
    assert bar.tokens_per_second == pytest.approx(200)
    assert bar.flops_utilisation == pytest.approx(200 * 6e6 / 3e9)
    assert bar.seconds_left == pytest.approx(86 / (3 / 4))
    bar.close()
    line = "step 14/100, loss 1.5000, 200 tokens/s, 40.0% of peak FLOP/s, 01:54 left"
    assert stream.getvalue().splitlines()[-1] == line


def test_rate_follows_the_last_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    bar = Progress(1000, stream=io.StringIO())
    for step in range(1, 100):
        clock.now += 1.0 if step < 50 else 0.1
        bar.update(step, 1.0, 100)
    assert bar.tokens_per_second == pytest.approx(1000)


def test_without_a_terminal_a_line_comes_now_and_then_and_at_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, stream = Clock(monkeypatch), io.StringIO()
    bar = Progress(100, stream=stream, interval=30)
    for step in range(1, 101):
        clock.now += 1
        bar.update(step, 1.0, 1)
    bar.close()
    lines = stream.getvalue().splitlines()
    steps = [int(line.split("/")[0].removeprefix("step ")) for line in lines]
    assert steps == [1, 31, 61, 91, 100]


def test_on_a_terminal_there_is_one_bar() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    with Progress(4, 1, stream=stream) as bar:
        for step in (2, 3, 4):
            bar.update(step, 0.125, 10)
            time.sleep(0.11)  # tqdm draws ten times a second
    last = stream.getvalue().split("\r")[-1]
    assert "4/4" in last and "loss 0.1250" in last and "tokens/s" in last
