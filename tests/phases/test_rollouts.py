"""Rounds of rollouts and of training on them, as phases."""

import json
import shutil

import numpy as np
import pytest

from research.checkpoints import runs
from research.config import schema
from research.phases.phased import PhasedExperiment
from research.phases.run import train_phases
from research.training.metrics import read_metrics

OBJECTIVE = {"kind": "supervised", "template": "Q: {prompt}\nA: "}


def rounds(world, count=2, pattern="e", rollouts=None, **changes):
    """Rounds in which an answer is worth 1 where something in it matches a pattern."""
    path = str(world.folder / "questions-{split}.jsonl")
    source = {"name": "questions", "kind": "jsonl", "path": path}
    task = {
        "source": source,
        "split": "train",
        "scorers": [{"kind": "pattern", "pattern": pattern, "whole": False}],
        "objective": OBJECTIVE,
        "samples": 4,
        "max_tokens": 6,
        "batch_size": 8,
        "sampling": {"temperature": 1.0, "seed": 1},
    }
    settings = {"task": task, "reward": "pattern", "prompts": 6}
    rollouts = settings | (rollouts or {})
    config = schema.to_dict(world.tuning(2)) | {
        "method": {"kind": "lora", "rank": 2},
        "loss": {"kind": "grpo"},
        "phases": [{"name": f"round{n}", "rollouts": rollouts} for n in range(count)],
    }
    data = {"sources": [source], "objective": {"kind": "rollouts", "of": OBJECTIVE}}
    config["data"] |= data | {"sequence_length": 64}
    return schema.build(PhasedExperiment, config | changes)


@pytest.fixture(scope="module")
def whole(world, tmp_path_factory):
    """Two rounds, which nobody stopped."""
    folder = tmp_path_factory.mktemp("rounds") / "run"
    train_phases(rounds(world), folder)
    return folder


def read_rollouts(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rollouts_are_what_was_drawn_and_worth_what_they_scored(world, whole):
    path = whole / "rollouts" / "1_round0.jsonl"
    lines, about = read_rollouts(path), json.loads(path.with_suffix(".json").read_text())
    tokenizer = runs.open_run(world.base).tokenizer
    groups: dict[int, list] = {}
    for line in lines:
        ids = line["answer_ids"]
        assert tokenizer.decode(ids if line["is_cut"] else ids[:-1]) == line["answer"]
        assert line["is_cut"] == (ids[-1] != tokenizer.end_id) and len(ids) <= 7
        assert line["reward"] == float("e" in line["answer"])
        groups.setdefault(line["row"], []).append(line)
    assert len(groups) == about["groups"] - about["equal_groups"]
    for group in groups.values():
        rewards = np.asarray([line["reward"] for line in group])
        expected = (rewards - rewards.mean()) / rewards.std()
        # the same arithmetic in float64
        np.testing.assert_allclose([line["advantage"] for line in group], expected)
    second = read_rollouts(whole / "rollouts" / "2_round1.jsonl")
    assert {line["row"] for line in second}.isdisjoint(groups)  # other prompts


def test_the_first_step_of_a_round_is_on_policy(whole):
    for name in ("1_round0", "2_round1"):
        first = read_metrics(whole / "phases" / name / "metrics.jsonl")[0]
        # ratios of two programs that round apart: (1e-5)^2 and less
        assert first["clipped_share"] == 0 and abs(first["kl"]) < 1e-8


def test_a_run_that_lost_its_second_round_comes_to_the_same_bits(world, whole):
    before, path = runs.open_run(whole).fingerprint, whole / "rollouts" / "2_round1.jsonl"
    text = path.read_bytes()
    shutil.rmtree(whole / "phases" / "2_round1")
    path.with_suffix(".json").unlink()  # which is written last
    train_phases(rounds(world), whole)
    assert runs.open_run(whole).fingerprint == before and path.read_bytes() == text


def test_rollouts_that_are_not_those_that_were_written_are_refused(world, whole):
    """A file that lost its last lines is a file of fewer answers: nothing else would tell."""
    path = whole / "rollouts" / "1_round0.jsonl"
    about = path.with_suffix(".json")
    lines, content = path.read_bytes().splitlines(keepends=True), about.read_bytes()
    for damage, match in (
        (lambda: path.write_bytes(b"".join(lines[:-1])), "round0.jsonl is damaged: remove"),
        (lambda: path.write_bytes(lines[0].replace(b"1", b"2", 1)), "is damaged"),
        (path.unlink, "round0.jsonl is gone: remove 1_round0.json"),
        (lambda: about.write_bytes(content[:-9]), "round0.json is damaged: remove it"),
    ):
        damage()
        with pytest.raises(ValueError, match=match):
            train_phases(rounds(world), whole)
        path.write_bytes(b"".join(lines))
    about.write_bytes(content)
    train_phases(rounds(world), whole)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"rollouts": {"reward": "patern"}}, "no metric 'patern'.*did you mean pattern"),
        ({"pattern": "~"}, "all rewards are equal .mean 0"),
    ],
)
def test_what_teaches_nothing_is_refused(world, tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        train_phases(rounds(world, count=1, **settings), tmp_path / "run")
    assert not (tmp_path / "run" / "phases").exists()


def test_a_loss_of_texts_is_refused(world):
    with pytest.raises(ValueError, match="gives rollouts: set loss.kind to grpo or reinforce"):
        rounds(world, loss={"kind": "cross_entropy"})


def test_a_group_of_one_is_refused(world):
    rollouts = schema.to_dict(rounds(world).phases[0])["rollouts"]
    rollouts["task"]["samples"] = 1
    with pytest.raises(ValueError, match="a group of one answer has no advantage"):
        rounds(world, rollouts=rollouts)


@pytest.mark.heavy  # some rounds
def test_what_is_rewarded_becomes_likelier_until_nothing_is_left_to_learn(world, tmp_path, capsys):
    train_phases(rounds(world, count=12, pattern="roofs"), tmp_path / "run")
    first = json.loads((tmp_path / "run" / "rollouts" / "1_round0.json").read_text())
    assert first["mean_reward"] < 0.8
    assert "all rewards are equal (mean 1)" in capsys.readouterr().out
    assert len(list((tmp_path / "run" / "phases").iterdir())) < 12
