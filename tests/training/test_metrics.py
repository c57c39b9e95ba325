"""Metrics of a run: their files survive kills and resumes."""

import json
import math
import os
import struct
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.training import metrics
from research.training.metric_steps import MetricSteps, describe_difference

ROOT = Path(__file__).resolve().parents[2]


def report(writer: metrics.MetricsWriter, steps: range) -> None:
    for step in steps:
        writer.write(step, {"train/loss": 1 / (1 + step), "learning_rate": np.float32(step)})
        if step % 3 == 0:
            writer.write(step, {"eval/loss": step, "kind": "law"})


@given(
    killed_at=st.integers(0, 10),
    data=st.data(),
)
def test_resumed_jsonl_equals_uninterrupted(
    killed_at: int, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    resumed_from = data.draw(st.integers(0, killed_at))
    length = data.draw(st.integers(0, 40))
    whole, cut = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("cut")
    with metrics.MetricsWriter(whole) as writer:
        report(writer, range(10))
    with metrics.MetricsWriter(cut) as writer:
        report(writer, range(killed_at))
    with (cut / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": killed_at, "train/loss": 0.25})[:length])
    with metrics.MetricsWriter(cut, start_step=resumed_from) as writer:
        report(writer, range(resumed_from, 10))
    assert (cut / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    assert sorted(path.name for path in cut.iterdir()) == ["metrics.jsonl", "tensorboard"]


def test_lines_are_on_disk_at_once_and_nonfinite_is_valid_json(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with metrics.MetricsWriter(tmp_path) as writer:
        writer.write(7, {"loss": jax.numpy.asarray(np.nan), "norm": math.inf, "skipped": True})
        line = path.read_text()
    assert json.loads(line, parse_constant=pytest.fail) == {
        "step": 7,
        "loss": None,
        "norm": None,
        "skipped": True,
    }
    (row,) = metrics.read_metrics(path)
    assert math.isnan(row["loss"]) and row["step"] == 7


def test_broken_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"loss": 2.0}\n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2: not a JSON object with a step"):
        metrics.read_metrics(path)
    with pytest.raises(ValueError, match="line 2"):
        metrics.MetricsWriter(tmp_path, start_step=2)
    assert path.read_text().count("\n") == 3


@pytest.mark.parametrize("step", ['"2"', "2.0", "true", "null", "-2"])
def test_a_step_that_is_no_whole_number_is_named_too(tmp_path: Path, step: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1}}\n{{"step": {step}}}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2: .* a whole number"):
        metrics.read_metrics(path)


def test_tensorboard_gets_every_scalar(tmp_path: Path) -> None:
    from tensorboardX.proto.event_pb2 import Event

    with metrics.MetricsWriter(tmp_path, start_step=3) as writer:
        writer.write(3, {"train/loss": 0.5, "kind": "law"})
    (file,) = (tmp_path / "tensorboard").iterdir()
    content, events = file.read_bytes(), []
    while content:  # a TFRecord is: length, its checksum, the record, its checksum
        (length,) = struct.unpack("<Q", content[:8])
        events.append(Event.FromString(content[12 : 12 + length]))
        content = content[16 + length :]
    values = [(e.step, v.tag, v.simple_value) for e in events for v in e.summary.value]
    assert values == [(3, "train/loss", 0.5)]
    assert any(e.session_log.status == 1 and e.step == 3 for e in events)


def test_only_process_zero_writes(tmp_path: Path) -> None:
    with metrics.MetricsWriter(tmp_path / "none", enabled=False) as writer:
        writer.write(1, {"loss": 1.0})
    assert not (tmp_path / "none").exists()


def steps(folder: Path) -> list[int]:
    return [row["step"] for row in metrics.read_metrics(folder / "metrics.jsonl")]


def test_what_is_deleted_while_training_is_written_again(tmp_path, caplog) -> None:
    with metrics.MetricsWriter(tmp_path) as writer:
        writer.write(1, {"loss": 1.0})
        (tmp_path / "metrics.jsonl").unlink()
        writer._board.flush()
        for event_file in (tmp_path / "tensorboard").iterdir():
            event_file.unlink()
        writer.write(2, {"loss": 0.5})
        assert steps(tmp_path) == [1, 2]
        writer.write(3, {"loss": 0.5})
    assert steps(tmp_path) == [1, 2, 3]
    assert caplog.text.count("was deleted while the run writes it: it is written again") == 1
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1
    assert "was deleted while the run writes it. The run goes on" in caplog.text


def test_what_is_cut_or_replaced_while_training_is_gone_on_with_and_said(tmp_path, caplog) -> None:
    path = tmp_path / "metrics.jsonl"
    with metrics.MetricsWriter(tmp_path) as writer:
        writer.write(1, {"loss": 1.0})
        writer.write(2, {"loss": 1.0})
        os.truncate(path, path.stat().st_size // 2)
        writer.write(3, {"loss": 1.0})
        assert steps(tmp_path) == [1, 3]
        assert "metrics.jsonl was cut from" in caplog.text and "what was cut is lost" in caplog.text
        (tmp_path / "other").write_text('{"step": 1, "loss": 2.0}\n')
        (tmp_path / "other").replace(path)
        writer.write(4, {"loss": 1.0})
        assert steps(tmp_path) == [1, 4]
        assert "was replaced by another file while the run writes it" in caplog.text
        outside = tmp_path / "outside"
        path.rename(outside)
        path.symlink_to(outside)
        with pytest.raises(OSError, match="is a symbolic link") as error:
            writer.write(5, {"loss": 1.0})
            writer.write(6, {"loss": 1.0})
        assert "remove the link" in str(error.value) and "disk space" not in str(error.value)


def test_a_hard_link_is_not_written_through(tmp_path, caplog) -> None:
    outside = tmp_path / "outside"
    outside.write_text('{"step": 1, "loss": 3.0}\n')
    folder = tmp_path / "run"
    with metrics.MetricsWriter(folder) as writer:
        writer.write(1, {"loss": 1.0})
        (folder / "metrics.jsonl").unlink()
        (folder / "metrics.jsonl").hardlink_to(outside)
        for step in (2, 3):
            writer.write(step, {"loss": 0.5})
    assert outside.read_text() == '{"step": 1, "loss": 3.0}\n' and steps(folder) == [1, 2, 3]
    assert "metrics.jsonl is a hard link" in caplog.text


def test_a_folder_that_is_gone_ends_the_run(tmp_path) -> None:
    with metrics.MetricsWriter(tmp_path / "run") as writer:
        writer.write(1, {"loss": 1.0})
        (tmp_path / "run").rename(tmp_path / "moved")
        message = r"step 2 could not be written: the folder .* moved\. Put back what was there"
        with pytest.raises(OSError, match=message):
            writer.write(2, {"loss": 1.0})
    assert steps(tmp_path / "moved") == [1] and not (tmp_path / "run").exists()


def test_the_steps_of_a_record_are_a_few_numbers_and_its_losses_are_named() -> None:
    rows = [{"step": step, "loss": 1.0} for step in range(1, 1001)]
    rows += [{"step": step, "heldout_loss": 1.0} for step in range(50, 1001, 50)]
    expected = MetricSteps(rows).progressions
    assert expected == {"training": [[1, 1000, 1]], "evaluation": [[50, 1000, 50]]}
    assert describe_difference(expected, rows) == ""
    twice = [*rows[:2], rows[3], *rows[3:]]  # as many lines
    message = "missing: training of step 3; once too often: training of step 4"
    assert describe_difference(expected, twice) == message
    assert describe_difference(expected, rows[5:1001]) == (
        "missing: evaluation of step 100, 150, 200, 250 and 15 more, "
        "training of step 1, 2, 3, 4 and 1 more"
    )


@given(st.lists(st.tuples(st.integers(1, 9), st.booleans()), max_size=12))
def test_any_order_of_lines_is_recorded_exactly(pairs: list[tuple[int, bool]]) -> None:
    rows = [{"step": step, "heldout_loss" if other else "loss": 1.0} for step, other in pairs]
    expected = MetricSteps(rows).progressions
    assert describe_difference(expected, rows) == ""
    for index in range(len(rows)):
        assert describe_difference(expected, rows[:index] + rows[index + 1 :])
