"""The climb: each rung builds on the best so far, and ends at a target or a budget."""

import numpy as np
import pytest

from research.data.sources import JsonlConfig
from research.decisions.baselines import measure_baselines
from research.decisions.costs import Prices
from research.decisions.final_test import affordable_rows
from research.decisions.ladder import Budget, Ladder
from research.decisions.rules import Volume
from research.decisions.rungs import PROMPTS
from research.decisions.rungs.base import Place
from research.decisions.templates import default_templates
from research.evaluation.generation_task import GenerationTask
from research.evaluation.scorers.exact_match import ExactMatch
from tests.decisions.worlds import BASE, Oracle, open_colours, write_colours


@pytest.fixture(scope="module")
def problem(tmp_path_factory, world):
    return open_colours(tmp_path_factory.mktemp("ladder"), world)


def climb(problem, shares, seconds=1.0, hours=10.0, target=None, baselines=False):
    oracle = Oracle(problem, shares, seconds)
    ladder = Ladder(
        problem, oracle.ask, Budget(hours * 3600), oracle.check, lambda line: None, target
    )
    for each in measure_baselines(problem) if baselines else ():
        ladder.add(each)
    templates = default_templates(problem.template, problem.labels)
    place = ladder.climb(PROMPTS, Place(problem, (BASE,), templates, None))
    return ladder, oracle, place


def test_each_rung_builds_on_the_best_so_far(problem):
    shares = {"labels first": 0.7, "labels first, 4 examples": 0.95}
    ladder, _, place = climb(problem, shares)
    assert place.best.name == "labels first, 4 examples"
    assert len(place.best.shots) == 4 and place.best.template.name == "labels first"
    nearest = ladder.table["labels first, 4 nearest examples"]
    assert nearest.way.shots == () and nearest.way.retrieval.passages == 4
    assert nearest.build.labels == 48 and ladder.table[place.best.name].build.labels == 4
    assert "chosen among options" in ladder.left_out["constraints"]
    advice = ladder.advise(Prices(), Volume())
    assert advice.best == place.best.name
    for name, each in ladder.table.items():
        assert (len(each.scores) == 48) == (not each.reason), name


def test_a_climb_ends_where_the_target_is_met_and_says_what_it_did_not_try(problem):
    ladder, oracle, _ = climb(problem, {"labels last": 0.99}, target=0.9)
    assert ladder.stop == "the target is met by labels last"
    assert ladder.left_out["few-shot"] == ladder.left_out["retrieval"] == ladder.stop
    assert not any("examples" in name for name, _ in oracle.questions)
    ladder, oracle, _ = climb(problem, {}, target=0.9, baselines=True)
    assert ladder.stop == "the target is met by nearest neighbour" and not oracle.questions


def test_a_budget_is_kept_with_time_for_the_test_and_what_is_not_asked_is_said(problem):
    # a row takes a second: zero-shot 48; the test would take 2 x 32, and may have a quarter of it
    ladder, oracle, _ = climb(problem, {}, hours=90 / 3600)
    spending = sum(len(problem.records(split)) for _, split in oracle.questions)
    assert spending == ladder.budget.spending <= 90 - 90 / 4 == 90 - ladder.budget.reserve
    assert climb(problem, {}, hours=400 / 3600)[0].budget.reserve == 64
    assert len(ladder.table["zero-shot"].scores) == 48
    unasked = [each for each in ladder.table.values() if "the budget was spent" in each.reason]
    assert unasked and all(len(each.scores) < 48 for each in unasked)
    assert ladder.advise(Prices(), Volume()).way == "zero-shot"


@pytest.mark.parametrize(("seconds", "rows"), [(1000, 300), (450, 200), (60, 30), (0, 30)])
def test_as_many_test_rows_are_asked_as_the_budget_has_left(problem, seconds, rows):
    one, two = climb(problem, {}, seconds=1.125)[0].finished()[:2]
    budget = Budget(500.0 + seconds, spending=500.0)
    assert affordable_rows([one, two], budget, 300) == rows
    assert affordable_rows([one, two], Budget(0.0), 20) == 20  # so few are always asked


def test_the_same_answers_lead_the_same_way_however_long_they_take_now(problem):
    """What was recorded decides, so that a climb that was killed goes on as it would have."""
    first, again = (climb(problem, {"2 examples": 0.8}, hours=0.1)[0] for _ in range(2))
    assert [*first.table] == [*again.table]
    for name, each in first.table.items():
        np.testing.assert_array_equal(each.scores, again.table[name].scores)


def test_a_way_that_cannot_be_asked_is_no_error(problem):
    ladder, oracle, _ = climb(problem, {"zero-shot": 0.9, "8 examples": None})
    assert ladder.table["8 examples"].reason == "it cannot be asked: its prompt is too long"
    assert ladder.table["8 examples"].quality is None
    assert "8 examples" not in {name for name, _ in oracle.questions}


def test_free_answers_are_constrained_to_those_that_are_known(tmp_path, world):
    write_colours(tmp_path)
    source = JsonlConfig("colours", str(tmp_path / "{split}.jsonl"))
    task = GenerationTask(source, (ExactMatch(),), max_tokens=4)
    problem = open_colours(tmp_path, world, task)
    assert problem.metric == "exact_match" and not problem.labels
    best = Place(problem, (BASE,), default_templates(problem.template, ()), None)
    zero = PROMPTS[0].ways(best)[0]
    [way] = PROMPTS[-1].ways(Place(problem, (BASE,), best.templates, zero))
    assert way.name == "zero-shot, one of the known answers"
    assert set(way.constraint.choices) == {"red", "green", "blue", "white"}
    asked_task = way.task(problem, "test")
    assert asked_task.constraint == way.constraint and asked_task.split == "test"
