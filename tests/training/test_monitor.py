"""The monitor of a run's steps, and what a summary keeps of it."""

import json
import math
from types import SimpleNamespace

import pytest

from research.losses import CrossEntropy
from research.training import monitor
from research.training.monitor import StepMonitor, is_due
from research.training.summary import Summary
from research.training.timing import Timing, describe_seconds


def open_monitor(folder, first_step=0, steps=6, log_every=2, max_skipped=3):
    saving = SimpleNamespace(best_metric="heldout_loss")
    experiment = SimpleNamespace(
        steps=steps,
        log_every=log_every,
        max_skipped=max_skipped,
        checkpoint=saving,
        loss=CrossEntropy(),
    )
    program = SimpleNamespace(experiment=experiment, flops_per_token=1.0)
    return StepMonitor(program, 8.0, folder, first_step, Timing(), peak_flops=None)


def metrics(loss, skipped=0):
    return {"loss": loss, "skipped": skipped}


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_step_is_fetched_when_the_next_one_was_dispatched(tmp_path):
    with open_monitor(tmp_path) as steps:
        steps.push(1, metrics(3.0))
        assert steps.last == {}
        steps.push(2, metrics(2.0))
        assert steps.last["loss"] == 3.0 and not rows(tmp_path)
        steps.drain()
        assert steps.last["loss"] == 2.0 and len(steps.step_seconds) == 1
    assert [row["step"] for row in rows(tmp_path)] == [2]


def test_skipped_steps_are_logged_and_too_many_in_a_row_end_the_run(tmp_path):
    with open_monitor(tmp_path) as steps:
        for step, skipped in enumerate([1, 0, 1, 1], start=1):
            steps.push(step, metrics(1.0, skipped))
        steps.push(5, metrics(math.nan, skipped=1))
        with pytest.raises(FloatingPointError, match="3 steps in a row up to step 5"):
            steps.drain()
        assert steps.skipped == 4
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3, 4, 5]


def test_an_evaluation_waits_for_all_steps_and_has_a_line_of_its_own(tmp_path):
    with open_monitor(tmp_path, log_every=1) as steps:
        steps.push(1, metrics(3.0))
        with steps.pause("evaluation"):
            assert steps.last["loss"] == 3.0
            steps.push_evaluation(1, {"heldout_loss": 2.5})
    assert rows(tmp_path) == [
        {"step": 1, "loss": 3.0, "skipped": 0.0},
        {"step": 1, "heldout_loss": 2.5},
    ]
    second = open_monitor(tmp_path, first_step=1, steps=1)  # only the summary was not written
    assert second.last["loss"] == 3.0 and second.evaluation == (1, {"heldout_loss": 2.5})
    second.writer.close()


def test_something_is_due_every_so_many_steps_and_at_the_end():
    assert [step for step in range(1, 8) if is_due(step, 3, 7)] == [3, 6, 7]
    assert [step for step in range(1, 8) if is_due(step, 0, 7)] == [7]


def test_a_summary_is_read_as_it_was_written(tmp_path):
    fields = dict.fromkeys(Summary.__annotations__, 1)
    summary = Summary(**fields | {"metrics": {"loss": 2.0, "tokens": 3.0}, "finished": False})
    summary.write(tmp_path)
    content = json.loads((tmp_path / "summary.json").read_text())
    assert content["loss"] == 2.0 and content["tokens"] == 1  # of the run, not of its last step
    assert Summary.read(tmp_path).to_dict() == summary.to_dict()


def test_timing_counts_each_part_once(monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(monitor.time, "perf_counter", lambda: float(next(clock)))
    timing = Timing()
    with timing("data"):
        pass
    timing.count_rest("start")
    assert list(timing.each("data", "ab")) == ["a", "b"]
    assert timing.seconds == {"data": 4.0, "start": 2.0}
    assert describe_seconds(timing.seconds) == "6.0 s: data 66.7%, start 33.3%"
