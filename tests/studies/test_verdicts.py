"""Verdicts: by which tests, and when none may be given."""

import math

import numpy as np
import pytest
from scipy import stats

from research.reports.statistics import cluster_mean, detectable_difference, holm, swap_test
from research.studies import Comparison, Form, Stage, Study, Sweep
from research.studies.ledger import FINISHED
from research.studies.schedule import plan
from research.studies.trials import Resolver
from research.studies.verdicts import verdicts
from tests.helpers import tiny_run

SEEDS = (1, 2, 3, 4)
FORMS = {"lora": Form({"method": {"kind": "lora", "rank": 2}}), "full": Form()}


@pytest.fixture(scope="module")
def config(world, tmp_path_factory):
    experiment = world.tuning(4, evaluate_split="heldout")
    return str(tiny_run.config_file(tmp_path_factory.mktemp("config"), experiment))


CLAIM = Comparison("lora", "full")


def judge(
    config,
    scores,
    comparisons=(CLAIM,),
    seeds=SEEDS,
    column="heldout_loss",
    answers=None,
    groups=None,
    **settings,
):
    """Verdicts of a study in which a form has these scores, one a seed, in a column."""
    study = Study(
        claim="",
        source="",
        refuted_if="",
        config=config,
        forms=FORMS,
        stages=(Stage("confirm", seeds),),
        comparisons=comparisons,
        **settings,
    )
    resolver, rows = Resolver(study), {}

    def lookup(trial):
        score = scores[trial.cell.form][seeds.index(trial.seed)]
        rows[trial.address] = {
            "inputs": trial.inputs,
            "code": "",
            "status": FINISHED if math.isfinite(score) else "diverged",
            "tokens": 100.0,
            column: score,
        }
        if answers:
            rows[trial.address] |= {"correct": answers[trial.cell.form], "groups": groups}
        return score

    progress = plan(resolver, lookup)
    return verdicts(resolver, rows, progress)


def test_a_paired_t_test_decides_and_is_that_of_scipy(config):
    lora, full = [1.0, 1.3, 1.1, 1.2], [1.2, 1.45, 1.35, 1.4]
    (verdict,) = judge(config, {"lora": lora, "full": full})
    assert verdict.word == "supported"
    # the same sums in another order
    assert verdict.p_value == pytest.approx(stats.ttest_rel(lora, full).pvalue, rel=1e-12)
    assert verdict.estimate.value == pytest.approx(np.mean(lora) - np.mean(full))
    (other,) = judge(config, {"lora": full, "full": lora})
    assert other.word == "refuted"
    (highest,) = judge(config, {"lora": full, "full": lora}, goal="highest")
    assert highest.word == "supported"


def test_noise_is_inconclusive_and_the_power_is_said(config):
    (verdict,) = judge(config, {"lora": [1.0, 1.4, 1.1, 1.3], "full": [1.2, 1.1, 1.3, 1.2]})
    assert verdict.word == "inconclusive" and verdict.detectable > abs(verdict.estimate.value)


def test_holms_correction_is_over_all_comparisons(config):
    both = (Comparison("lora", "full"), Comparison("full", "lora"))
    scores = {"lora": [1.0, 1.3, 1.1, 1.2], "full": [1.2, 1.45, 1.35, 1.4]}
    (alone,), pair = judge(config, scores), judge(config, scores, both)
    assert [v.p_value for v in pair] == [pytest.approx(2 * alone.p_value)] * 2


def test_equality_is_claimed_within_a_margin(config):
    scores = {"lora": [1.0, 1.1, 1.2, 1.3], "full": [1.01, 1.09, 1.21, 1.3]}
    words = [
        judge(config, scores, (Comparison("lora", "full", margin=margin),))[0].word
        for margin in (0.1, 0.001)
    ]
    assert words == ["supported", "inconclusive"]
    scores["full"] = [2.0, 2.1, 2.21, 2.3]
    assert judge(config, scores, (Comparison("lora", "full", margin=0.1),))[0].word == "refuted"


@pytest.mark.parametrize(
    "settings, reason",
    [
        ({"seeds": (1, 2)}, "2 seeds are fewer than 3"),
        (
            {"sweep": Sweep((1e-2, 3e-2), max_growth=0)},
            "the best value of lora lies at an edge",
        ),
        ({"scores": {"lora": [1.0, math.inf, 1.1, 1.2], "full": [2.0] * 4}}, "not every trial"),
    ],
)
def test_no_verdict_where_one_would_mislead(config, settings, reason):
    scores = {"lora": [1.0, 1.3, 1.1, 1.2], "full": [1.2, 1.45, 1.35, 1.4]}
    (verdict,) = judge(config, **{"scores": scores} | settings)
    assert verdict.word == "none" and verdict.p_value is None
    assert any(reason in text for text in verdict.reasons), verdict.reasons


def test_holm_matches_a_worked_example():
    # Holm 1979 as Wright 1992, Biometrics 48:1005, writes the adjusted p-values
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []


def test_the_detectable_difference_is_found_as_often_as_it_says():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(4_000, 5))
    first = noise[0]
    scaled = noise * first.std(ddof=1)  # studies with the spread of the first
    effect = detectable_difference(first)
    share = np.mean(stats.ttest_1samp(scaled + effect, 0.0, axis=1).pvalue < 0.05)
    # 4,000 draws of a share of 0.8: its standard error is 0.0063
    assert share == pytest.approx(0.8, abs=5 * 0.0063)


def test_the_error_of_a_mean_over_clusters():
    values = np.random.default_rng(0).normal(size=50)
    mean, error, freedom = cluster_mean(values)
    assert (mean, freedom) == (values.mean(), 49)
    # one row a cluster: the ordinary standard error, the same sums in another order
    assert error == pytest.approx(stats.sem(values), rel=1e-12)
    twice = cluster_mean(np.repeat(values, 2), np.repeat(np.arange(50), 2))
    # every row twice is the same data: the same sums in another order
    assert twice == pytest.approx((mean, error, freedom), rel=1e-12)


def test_a_quality_is_judged_over_questions_too(config):
    right = {"lora": [0.9, 0.91, 0.92, 0.9], "full": [0.8, 0.8, 0.82, 0.81]}
    by_answers = Comparison("lora", "full", metric="quality", goal="highest")
    (unkept,) = judge(config, right, (by_answers,), column="quality")
    assert unkept.word == "none" and "answers were not kept" in unkept.reasons[0]
    # lora has 10 of 100 more, all of them near duplicates of one question, or not
    numbers = range(100)
    answers = {"lora": [n < 90 for n in numbers], "full": [10 <= n < 90 for n in numbers]}
    for groups, word in (([*range(100)], "supported"), ([0] * 10 + [*range(90)], "inconclusive")):
        (verdict,) = judge(
            config, right, (by_answers,), column="quality", answers=answers, groups=groups
        )
        assert verdict.word == word


def test_questions_must_agree_with_seeds():
    differences = np.r_[np.ones(10), np.zeros(90)]
    # exact for ten signs: every one of 1,024 is tried
    assert swap_test(differences) == pytest.approx(2 / 2**10)
    # all ten are near duplicates of each other: one observation
    assert swap_test(differences, np.r_[np.zeros(10), np.arange(1, 91)]) == 1.0
