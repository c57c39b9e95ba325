"""Evaluation by several processes: the first one writes what one process alone would."""

import json

import pytest

from research.commands import evaluate
from research.config import schema
from tests.helpers import rounding, tiny_run
from tests.system.test_hosts import experiment, finish, start, together


def words(world):
    """A task that is answered in words."""
    source = schema.to_dict(world.questions())["sources"][0]
    task = {"kind": "generation", "source": source, "split": "heldout", "max_tokens": 5}
    return task | {"scorers": [{"kind": "exact_match"}], "batch_size": 8}


@pytest.mark.heavy
def test_retrieval_is_refused_where_several_processes_train(world, tmp_path):
    task = words(world)
    task |= {"retrieval": {"kind": "bm25", "source": task["source"]}}
    config = experiment(world, evaluation={"tasks": {"words": task}})
    processes = start(2, config, tmp_path / "run")
    outputs = [process.communicate(timeout=240)[0] for process in processes]
    assert all(process.returncode for process in processes)
    assert any("leave --distributed out, or of `tasks`: words" in output for output in outputs)


@pytest.mark.heavy
def test_two_processes_measure_what_one_does(world, tmp_path):
    data = schema.to_dict(world.data())
    text = {"sources": data["sources"], "sequence_length": 32, "batch_size": 8}
    file = tmp_path / "evaluate.py"
    config = {"text": text, "tasks": {"words": words(world)}, "mesh": {"data": 2, "fsdp": 4}}
    file.write_text(f"def get_config():\n    return {config!r}\n")
    flags = ["--config", str(file), "--run", str(world.base), "--out"]
    evaluate.main([*flags, str(tmp_path / "alone.json")])
    out = tmp_path / "pair.json"
    outputs = finish(together([tiny_run.command("evaluate", *flags, out)] * 2))
    assert "bits per byte" in outputs[0] and "bits per byte" not in outputs[1]
    whole, shared = (json.loads(path.read_text()) for path in (tmp_path / "alone.json", out))
    answers = [
        [(each["answer"], each["scores"]) for each in report["tasks"]["words"]["answers"]]
        for report in (whole, shared)
    ]
    assert answers[0] == answers[1] and len({answer for answer, _ in answers[0]}) > 1
    expected, actual = (report["tasks"]["bits_per_byte"]["metrics"] for report in (whole, shared))
    assert actual.keys() == expected.keys() == {"prose", "prose/nats"}
    values = [metrics["prose"]["value"] for metrics in (actual, expected)]
    rounding.assert_close(*values, roundings=tiny_run.ROUNDINGS)
