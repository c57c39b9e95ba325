"""Tuning through the study engine: nothing is trained twice, and its models answer as any way."""

import dataclasses

import numpy as np
import pytest

from research.checkpoints import runs
from research.decisions import pretraining
from research.decisions.asking import Asker
from research.decisions.bases import measure_bases
from research.decisions.costs import BuildCost
from research.decisions.ladder import Budget, Ladder
from research.decisions.rungs import LeftOut
from research.decisions.rungs.tuned import TUNINGS, Tuning
from research.decisions.templates import PromptTemplate
from research.decisions.trials import Clock
from research.decisions.tuning import Start, Tuned, Tuner, TuningSettings
from research.decisions.ways import Base, Way
from research.studies import running
from tests.decisions.worlds import BASE, Oracle, open_colours

TEMPLATE = PromptTemplate("own", question="Q: {prompt}\nA:", delimiter=" ")
LORA = Tuning("LoRA", {"kind": "lora", "rank": 2}, (1e-3, 1e-2))


@pytest.fixture(scope="module")
def problem(tmp_path_factory, world):
    return open_colours(tmp_path_factory.mktemp("tuning"), world)


@dataclasses.dataclass
class StandIn:
    """A tuner that trains nothing; each trial takes 100 seconds."""

    counts: tuple[int, ...] = (12, 24, 48)

    def tune(self, tuning, clock):
        for count in reversed(self.counts):
            if not clock.has_time(100):
                raise ValueError("the budget was spent")
            clock.spend(100)
            name = f"{tuning.name}, {count} labels"
            build = BuildCost(labels=count, seconds=100.0, trainable_parameters=5)
            yield Tuned(Way(name, tuning.name, BASE, TEMPLATE, build=build), 0.25)


def tune(problem, shares, hours=10.0, before=None, target=None):
    oracle = Oracle(problem, shares, seconds=0.01)
    ladder = Ladder(
        problem, oracle.ask, Budget(hours * 3600), oracle.check, lambda line: None, target
    )
    if before is not None:
        way = Way("prompt", "zero-shot", BASE, TEMPLATE)
        oracle.shares["prompt"] = before
        ladder._try([way])
    ladder.tune(StandIn(), TUNINGS)
    return ladder, oracle


def test_what_loses_with_all_labels_gets_no_curve_and_what_does_not_gets_one(problem):
    shares = {"full, 48 labels": 0.99, "full, 24 labels": 0.8, "full, 12 labels": 0.5}
    ladder, _ = tune(problem, shares | {"LoRA, 48 labels": 0.1}, before=0.95)
    assert "LoRA, 24 labels" not in ladder.table
    assert "points to prompt on" in ladder.table["LoRA, 48 labels"].reason
    # a point of the curve has all rows, though it loses to the best
    assert len(ladder.table["full, 12 labels"].scores) == 48
    [curve] = [curve for curve in ladder.curves() if curve.name == "full"]
    assert curve.labels == (12, 24, 48) and curve.slopes[0] > 0
    assert ladder.table["full, 48 labels"].forgetting == 0.25


def test_tuning_ends_at_the_target_or_the_budget_and_says_what_was_left_out(problem):
    ladder, _ = tune(problem, {"prompt tuning, 48 labels": 0.99}, target=0.9)
    reason = "the target is met by prompt tuning, 48 labels"
    assert ladder.left_out == {name: reason for name in ("LoRA", "adapter", "full")}
    ladder, _ = tune(problem, {}, hours=250 / 3600)
    assert ladder.left_out["prompt tuning"] == "the budget was spent"
    assert ladder.left_out["full"] and ladder.budget.spending < 250


@pytest.mark.heavy
def test_a_rate_is_searched_once_and_its_best_model_answers_as_any_way(
    problem, world, tmp_path, monkeypatch
):
    trained_folders, train = [], running.train

    def count(experiment, workdir, **settings):
        trained_folders.append(str(workdir))
        return train(experiment, workdir, **settings)

    monkeypatch.setattr(running, "train", count)
    base = Base("tiny", str(world.base))
    changes = {"schedule": {"learning_rate": 1e-3, "kind": "constant"}}
    settings = TuningSettings(steps=2, changes=changes)

    def make():
        return Tuner(problem, Start(base), TEMPLATE, tmp_path / "tuning", settings)

    spending, lines = [], []
    models = list(make().tune(LORA, Clock(lambda seconds: True, spending.append, lines.append)))
    assert [tuned.way.build.labels for tuned in models] == [48, 24, 12]
    # two rates, at most two that the search grew by, and two smaller numbers of labels
    assert len(set(trained_folders)) == len(trained_folders) == len(spending) <= 6
    assert models[0].way.build.trainable_parameters > 0 and models[0].way.build.seconds > 0
    assert (
        models[1].way.build.seconds > models[0].way.build.seconds
    )  # the search is part of its cost
    folders = [p for p in (tmp_path / "tuning/trials").iterdir() if (p / "run/model").exists()]
    assert len(folders) == 3  # those of other rates are gone
    asker = Asker(problem, tmp_path / "answers")
    asker.check(models[0].way, problem.screens)
    result = asker.ask(models[0].way, "screen_1")
    asker.close()
    assert len(result.answers) == 12 and np.isin(result.answers[0].scores["right"], (0, 1))
    # again: nothing is trained, and the same seconds are counted
    before = len(trained_folders)
    again_spending = []
    again = list(
        make().tune(LORA, Clock(lambda seconds: True, again_spending.append, lines.append))
    )
    assert len(trained_folders) == before and sorted(again_spending) == sorted(spending)
    assert [tuned.way for tuned in again] == [tuned.way for tuned in models]


@pytest.mark.heavy
def test_a_base_reads_texts_without_labels_and_is_tuned_from_there(
    problem, world, tmp_path, monkeypatch
):
    base, spending = Base("tiny", str(world.base)), []
    clock = Clock(lambda seconds: True, spending.append, lambda line: None)
    settings = TuningSettings(steps=2, pretraining_steps=2, pretraining_rates=(1e-3,))
    with pytest.raises(LeftOut, match="0 texts without a label are too few to read"):
        pretraining.pretrain(problem, base, tmp_path / "no", settings, clock)
    texts = tuple(f"roof {n} is red or green, nobody says which" for n in range(40))
    rows = dataclasses.replace(problem.rows, texts=texts)
    reading = dataclasses.replace(problem, rows=rows)
    start = pretraining.pretrain(reading, base, tmp_path / "read", settings, clock)
    assert start.prefix == "read its texts, " and start.seconds == sum(spending) > 0
    tuner = Tuner(problem, start, TEMPLATE, tmp_path / "tuned", settings)
    tuned = next(tuner.tune(Tuning("LoRA", LORA.method, (1e-3,)), clock))
    assert tuned.way.name == "read its texts, LoRA, 48 labels"
    assert tuned.way.build.seconds > start.seconds and tuned.way.build.flops > start.flops
    run = runs.open_run(tuned.way.base.path)
    assert str(run.base.path).startswith(start.path)
    [first, again] = [measure_bases(problem, [base], tmp_path) for _ in range(2)]
    assert first == again and first[0].bits_per_byte > 0 and first[0].licence == "not stated"
    assert first[0].parameters == 9808
