"""What is measured of a run in training, and the checkpoint that is best by it."""

import dataclasses
import json

import pytest

from research.checkpoints import runs
from research.checkpoints.checkpointer import Checkpointer
from research.experiment import CheckpointConfig
from research.training.loop import train
from research.training.session import Session
from tests.helpers import tiny_run

# of each step: the second and the fourth are equal, and better than the others
SCORES = {1: 0.25, 2: 0.75, 3: 0.5, 4: 0.75}
BEST = CheckpointConfig(keep_last=1, keep_best=True, best_metric="colours/right")


class Scripted:
    """An evaluator that gives scores by how often it was called, from a step on."""

    metrics = ("colours/right", "colours/nothing")
    keys = {"colours": "of these questions"}  # noqa: RUF012

    def __init__(self, step, fails_at=None):
        self._step, self._fails_at = step, fails_at

    def describe(self):
        return "colours"

    def __call__(self, model):
        self._step += 1
        if self._step == self._fails_at:
            raise KeyboardInterrupt
        return {"colours/right": SCORES[self._step], "colours/nothing": float("nan")}


def scripted(step=0, fails_at=None):
    return Session(lambda *_: Scripted(step, fails_at))


def steps_of(folder):
    return Checkpointer(folder / "checkpoints").all_steps()


@pytest.mark.heavy
def test_the_best_checkpoint_is_the_first_of_the_best_also_after_a_kill(world, tmp_path):
    questions, here = {"evaluation": {"tasks": {}}, "evaluate_every": 1}, tmp_path / "run"
    experiment = world.experiment(4, checkpoint=BEST, **questions)
    with pytest.raises(KeyboardInterrupt):  # in the middle of an evaluation
        train(experiment, here, session=scripted(fails_at=3))
    assert steps_of(here) == [2]  # saved though `checkpoint.every` is 0
    summary = train(experiment, here, session=scripted(step=2))
    assert summary.best == {"step": 2, "metric": "colours/right", "value": 0.75}
    assert steps_of(here) == [2, 4]
    assert runs.open_run(here / "best").checkpoint.step == 2
    assert runs.open_run(here).checkpoint.step == 4
    measured = [json.loads(line) for line in tiny_run.lines(here) if "colours/right" in line]
    assert {row["step"]: row["colours/right"] for row in measured} == SCORES
    train(world.experiment(4), tmp_path / "plain")  # which never was asked anything
    assert tiny_run.content(here, 4) == tiny_run.content(tmp_path / "plain", 4)


def test_a_best_checkpoint_that_is_not_kept_or_not_measured_is_said(world, tmp_path):
    train(world.experiment(1), tmp_path / "run")
    with pytest.raises(FileNotFoundError, match="run keeps no best checkpoint .*keep_best"):
        runs.open_run(tmp_path / "run" / "best")
    with pytest.raises(ValueError, match="'colours/right' chooses which step is kept: set keep_be"):
        CheckpointConfig(best_metric="colours/right")
    with pytest.raises(ValueError, match="has no metric 'colours/rigth'; did you mean colours/rig"):
        saving = dataclasses.replace(BEST, best_metric="colours/rigth")
        experiment = world.experiment(1, evaluation={"tasks": {}}, checkpoint=saving)
        train(experiment, tmp_path / "other", session=scripted())


@pytest.mark.heavy
def test_a_best_checkpoint_is_not_chosen_among_values_of_different_things(world, tmp_path):
    """What is evaluated may change where a run goes on."""

    def go_on(steps, session=None, saving=BEST, **changes):
        settings = {"evaluate_every": 1, "checkpoint": saving, "evaluate_split": "heldout"}
        return train(
            world.experiment(steps, **settings | changes), tmp_path / "run", session=session
        )

    by_loss = CheckpointConfig(keep_best=True)
    go_on(2, saving=by_loss)
    message = "run: heldout_loss of step . was measured on something else than now"
    with pytest.raises(ValueError, match=message):
        go_on(3, saving=by_loss, evaluate_tokens=8)
    tasks = {"evaluation": {"tasks": {}}}
    go_on(3, scripted(step=2), **tasks)  # another metric
    others = Scripted(3)
    others.keys = {"colours": "of others"}
    with pytest.raises(ValueError, match="colours/right of step 3 was measured on something else"):
        go_on(4, Session(lambda *_: others), **tasks)
    go_on(4, saving=CheckpointConfig(), evaluate_tokens=8)
