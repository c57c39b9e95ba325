"""How an advice is judged, on numbers that can be checked by hand."""

import dataclasses
import json

import pytest

from experiments.decide_advice import __main__ as study
from experiments.decide_advice.judge import judge, summarize
from research.commands.tasks import find_tasks

TOTALS = {"prompt": 5.0, "tuned": 2.0, "majority": 0.5}


def result(advised, rights, names=None):
    """What a decision gives: the first so many of 100 test rows are right."""
    tests = [
        {"way": name, "scores": [float(n < right) for n in range(100)]}
        for name, right in rights.items()
        if names is None or name in names
    ]
    return {"advice": {"way": advised, "totals": TOTALS}, "test": tests}


def judgment_of(advised, rights, setting="a"):
    return judge(setting, result(advised, rights, [advised]), result(advised, rights))


def test_an_advice_is_right_where_the_test_does_not_tell_it_from_the_best():
    rights = {"prompt": 80, "tuned": 78, "majority": 30}
    best, level, wrong = (judgment_of(name, rights) for name in rights)
    assert best.is_best and best.is_as_good and best.regret.value == 0
    assert not level.is_best and level.is_as_good and level.regret.value == pytest.approx(-0.02)
    assert not wrong.is_as_good and wrong.regret.high < 0
    # the cheapest that is as good as the best is the tuned model
    assert (best.cost_ratio, level.cost_ratio) == (2.5, 1.0)
    total = summarize([best, level, wrong])
    assert (total["best"], total["as_good"].value) == (1, pytest.approx(2 / 3))
    assert total["mean_regret"] == pytest.approx(0.52 / 3)
    assert total["worst_regret"] == pytest.approx(0.5)


def test_an_advice_that_was_not_tested_is_no_judgment():
    with pytest.raises(ValueError, match="a: tuned was not asked the test rows"):
        judge("a", result("tuned", {"prompt": 5}), result("prompt", {"prompt": 5}))


def test_there_are_twelve_settings_of_tasks_that_there_are():
    names = [setting.name for setting in study.settings(study.BASES)]
    assert len(names) == len(set(names)) == 12
    assert {task for task, _ in study.TASKS.values()} <= set(find_tasks())


def test_the_table_says_what_all_settings_come_to():
    rights = {"prompt": 80, "tuned": 78, "majority": 30}
    results = {
        name: json.loads(json.dumps(dataclasses.asdict(judgment_of(name, rights, name))))
        for name in rights
    }
    text = study.table(results)
    assert "| majority | majority | prompt" in " ".join(text.split())
    assert "The advised way is the best in 1 of 3 settings" in text
    assert "17.3 points under the best on average, 50.0 at worst" in text
