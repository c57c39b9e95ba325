"""Claims over cells: which cells a name means, ratios of best values, trends along an axis."""

import math

import pytest

from research.studies import Comparison, Form, Ratio, Stage, Sweep, Trend, axis, product
from research.studies.best_values import lowest_point
from research.studies.cells import Cell, lines_along, match, pairs
from research.studies.ledger import FINISHED
from research.studies.schedule import plan
from research.studies.study import Study
from research.studies.trials import Resolver
from research.studies.verdicts import verdicts
from tests.helpers import tiny_run

CELLS = [
    Cell(form, number, {"method.rank": rank, "steps": steps})
    for form in ("lora", "dora")
    for number, (rank, steps) in enumerate([(1, 5), (1, 9), (4, 5), (4, 9)])
]
RANKS = (1, 2, 4)


@pytest.fixture(scope="module")
def config(world, tmp_path_factory):
    experiment = world.tuning(4, evaluate_split="heldout")
    return str(tiny_run.config_file(tmp_path_factory.mktemp("config"), experiment))


def make_study(config, *comparisons, **settings):
    forms = {"lora": Form({"method": {"kind": "lora"}}), "dora": Form({"method": {"kind": "dora"}})}
    own = {
        "forms": forms,
        "axes": axis("method.rank", *RANKS),
        "sweep": Sweep((1e-3, 3e-3, 9e-3)),
        "stages": (Stage("screen", (0,), keep_values=3), Stage("confirm", (1, 2, 3))),
    }
    texts = {"claim": "", "source": "", "refuted_if": "", "config": config}
    return Study(**texts, comparisons=comparisons, **own | settings)


def judge(study, best):
    """Verdicts where the metric is a parabola around `best(trial)`, in the logarithm."""

    def parabola(trial):
        return math.log(trial.value / best(trial)) ** 2 + 1 / trial.cell.point["method.rank"]

    return judge_scores(study, parabola)


def judge_scores(study, metric, tokens=lambda trial: 1.0):
    resolver, rows = Resolver(study), {}

    def lookup(trial):
        score = metric(trial)
        rows[trial.address] = {
            "inputs": trial.inputs,
            "code": "",
            "status": FINISHED,
            "heldout_loss": score,
            "tokens": tokens(trial),
        }
        return score

    return verdicts(resolver, rows, plan(resolver, lookup))


def test_a_name_is_a_form_a_point_or_a_cell():
    assert [cell.label for cell in match("lora rank=4", CELLS).values()] == [
        "lora rank=4 steps=5",
        "lora rank=4 steps=9",
    ]
    assert len(match("steps=9", CELLS)) == 4 and len(match("", CELLS)) == 8
    forms = pairs("lora", "dora", CELLS)
    assert [(p.label, p.first.form, p.second.form) for p in forms][0] == (
        "rank=1 steps=5",
        "lora",
        "dora",
    )
    assert all(p.first.point == p.second.point for p in forms) and len(forms) == 4
    ranks = pairs("rank=1", "rank=4", CELLS)
    assert [p.label for p in ranks][::2] == ["lora steps=5", "dora steps=5"] and len(ranks) == 4


def test_all_may_be_compared_with_one_cell():
    reference = "dora rank=4 steps=9"
    against = pairs("dora", reference, CELLS)
    assert [p.label for p in against] == ["rank=1 steps=5", "rank=1 steps=9", "rank=4 steps=5"]
    assert {p.second.label for p in against} == {reference}


def test_lines_along_an_axis_rise_and_axes_that_go_together_part_none():
    lines = lines_along("method.rank", list(reversed(CELLS)))
    assert set(lines) == {"lora steps=5", "lora steps=9", "dora steps=5", "dora steps=9"}
    assert [number for number, _ in lines["lora steps=5"]] == [1, 4]
    together = [Cell("", n, {"rank": n, "alpha": 2 * n}) for n in (1, 2, 3)]
    assert [len(line) for line in lines_along("rank", together).values()] == [3]


@pytest.mark.parametrize(
    "comparison, message",
    [
        (Comparison("lora", "drra"), r"names 'drra', which no .* did you mean dora\?"),
        (Comparison("lora", "rank=3"), "names 'rank=3'"),
        (Comparison("lora", "rank=1"), "no two cells to compare"),
        (Comparison("lora", "dora", across="rnk"), "across 'rnk', which is no axis; did you mean"),
        (Trend("rnk", high=0), r"along 'rnk', which is no axis; did you mean rank\?"),
        (Trend("kind", high=0), "'kind', which is no axis"),
        (Trend("rank", 0, cells="lora", less="dra"), "'dra', which no form"),
    ],
)
def test_a_comparison_of_what_is_not_there_is_refused_with_the_study(config, comparison, message):
    with pytest.raises(ValueError, match=message):
        make_study(config, comparison)


def test_best_values_need_a_sweep_and_trends_three_numbers(config):
    with pytest.raises(ValueError, match="the study has no sweep"):
        make_study(config, Ratio("lora", "dora", 1, 2), sweep=None)
    with pytest.raises(ValueError, match="3 positive numbers or more"):
        make_study(config, Trend("rank", high=0), axes=axis("method.rank", 1, 2))


def test_the_lowest_point_of_a_parabola_is_found_between_the_values_of_the_grid():
    best = 2e-3
    grid = {value: 1 + math.log(value / best) ** 2 for value in (3e-4, 1e-3, 3e-3, 9e-3)}
    # three points give a parabola exactly; what is left is rounding
    assert lowest_point(grid).value == pytest.approx(best, rel=1e-9)
    assert lowest_point(grid)[1:] == (1e-3, 9e-3)
    assert lowest_point({1e-3: 3.0, 3e-3: 2.0, 9e-3: 0.0}) is None  # still falling
    assert lowest_point({1e-3: 1.0, 3e-3: math.inf, 9e-3: 2.0}) is None


def test_a_ratio_of_best_values_is_judged_by_its_interval_over_seeds(config):
    def best(trial):  # by seed a little apart; lora's is twice dora's
        return (4e-3 if trial.cell.form == "lora" else 2e-3) * (1 + 0.02 * trial.seed % 0.05)

    claims = [Ratio("lora", "dora", *limits) for limits in ((1.5, 3), (5, 20))]
    judged = judge(make_study(config, *claims), best)
    assert [v.label for v in judged[:3]] == [f"rank={rank}" for rank in RANKS]
    assert [v.word for v in judged] == ["supported"] * 3 + ["refuted"] * 3
    # as above, and the seeds' shares cancel in the ratio
    assert judged[0].estimate.value == pytest.approx(2, rel=1e-6)


def test_the_independence_of_an_axis_is_judged_by_its_slope(config):
    def best(trial):
        share = 1 + 0.01 * (trial.seed * 7 % 5)
        grows = trial.cell.form == "dora"
        return 3e-3 * share * (trial.cell.point["method.rank"] ** 0.5 if grows else 1)

    flat = Trend("rank", 0.9, 1.1, of="best")
    judged = judge(make_study(config, flat, Trend("method.rank", high=0)), best)
    assert [(v.label, v.word) for v in judged[:2]] == [("lora", "supported"), ("dora", "refuted")]
    # the square root: a factor of 2**0.5 as the rank doubles, to rounding
    assert judged[1].estimate.value == pytest.approx(2**0.5, rel=1e-6)
    assert [v.word for v in judged[2:]] == ["supported", "supported"]


def test_a_gap_that_grows_along_an_axis_is_judged_apart_from_what_both_do(config):
    def metric(trial):  # both fall with the rank; lora's gap to dora grows, but for noise of seeds
        rank = trial.cell.point["method.rank"]
        gap = (0.1 + 0.01 * (trial.seed % 2)) * math.log2(rank) * (trial.cell.form == "lora")
        return 3 - math.log2(rank) + gap

    claims = [Trend("rank", 0, cells="lora", less="dora"), Trend("rank", high=0, cells="lora")]
    study = make_study(config, *claims, sweep=None, stages=(Stage("confirm", (1, 2, 3)),))
    gap, falls = judge_scores(study, metric)
    assert (gap.word, falls.word) == ("supported", "supported")
    assert gap.text == "the metric less that of dora rises along rank, lora"
    # the mean over seeds of 0.11, 0.1 and 0.11 as the rank doubles, to rounding
    assert gap.estimate.value == pytest.approx(0.32 / 3, rel=1e-6)
    # a line that goes on further than the cells do is taken off where they are
    short = make_study(
        config,
        claims[0],
        sweep=None,
        stages=(Stage("confirm", (1, 2, 3)),),
        axes=axis("method.rank", *RANKS, 8),
        only=lambda form, point: form == "dora" or point["method.rank"] < 8,
    )
    (again,) = judge_scores(short, metric)
    assert (again.word, again.estimate) == ("supported", gap.estimate)
    # and where the two read different amounts of text, nothing is said
    forms = {"lora": Form({"method": {"kind": "lora"}}), "dora": Form({"method": {"kind": "dora"}})}
    (apart,) = judge_scores(
        make_study(config, claims[0], forms=forms, sweep=None, stages=short.stages),
        metric,
        tokens=lambda trial: 100.0 if trial.cell.form == "lora" else 200.0,
    )
    assert apart.word == "none" and "they read 100 and 200 tokens" in apart.reasons


def test_a_ratio_says_what_it_needs_where_no_stage_ran_three_values(config):
    stages = (Stage("screen", (0,)), Stage("confirm", (1, 2, 3)))
    study = make_study(config, Ratio("lora rank=1", "dora rank=1", 1, 2), stages=stages)
    (verdict,) = judge(study, lambda trial: 3e-3 * (1 + 0.01 * trial.seed))
    assert verdict.word == "none"
    # the screening has them, with one seed
    assert "1 seeds are fewer than 3" in verdict.reasons


def test_points_of_several_axes_are_named_by_any_of_their_parts(config):
    axes = product(axis("method.rank", 1, 2, 4), axis("steps", 3, 5))
    study = make_study(config, Comparison("rank=1 steps=5", "rank=4 steps=5"), axes=axes)
    assert [pair.label for pair in study.comparisons[0].pairs(study.cells())] == ["lora", "dora"]


def test_a_comparison_across_an_axis_tells_what_no_point_of_it_does_alone(config):
    noise = {(1, 1): 0.3, (1, 2): -0.3, (2, 2): 0.3, (2, 3): -0.3, (4, 3): 0.3, (4, 1): -0.3}

    def metric(trial):  # lora is 0.1 lower, under noise of a point and seed that cancels in seeds
        rank = trial.cell.point["method.rank"]
        if trial.cell.form == "dora":
            return float(rank)
        return rank - 0.1 - 0.01 * (trial.seed % 2) + noise.get((rank, trial.seed), 0.0)

    claims = [Comparison("lora", "dora"), Comparison("lora", "dora", across="rank")]
    study = make_study(config, *claims, sweep=None, stages=(Stage("confirm", (1, 2, 3)),))
    *points, across = judge_scores(study, metric)
    assert [(v.label, v.word) for v in points] == [(f"rank={n}", "inconclusive") for n in RANKS]
    assert across.word == "supported" and across.text == "lora beats dora across rank"
    # the mean over seeds of -0.11, -0.1 and -0.11, to rounding
    assert across.estimate.value == pytest.approx(-0.32 / 3, rel=1e-6)
    several = make_study(
        config, claims[1], axes=product(axis("method.rank", 1, 2), axis("steps", 3, 5))
    )
    groups = several.comparisons[0].groups(several.cells())
    assert {label: len(pairs) for label, pairs in groups.items()} == {"steps=3": 2, "steps=5": 2}
