"""Which trials a study asks for, as a function of results alone; nothing is trained here."""

import math

import pytest

from research.studies import Form, Stage, Study, Sweep, axis, product
from research.studies.schedule import plan
from research.studies.study import load
from research.studies.trials import Resolver
from tests.helpers import tiny_run


@pytest.fixture(scope="module")
def config(world, tmp_path_factory):
    """A config file of a run that is tuned from the base."""
    experiment = world.tuning(4, evaluate_split="heldout")
    return str(tiny_run.config_file(tmp_path_factory.mktemp("config"), experiment))


FORMS = {"lora": Form({"method": {"kind": "lora", "rank": 2}}), "full": Form()}


def make_study(config, **settings):
    return Study(claim="", source="", refuted_if="", config=config, **settings)


def run_through(resolver, metric):
    """Answers every trial with `metric(trial)`; gives the progress, and the batches asked for."""
    results, batches = {}, []

    def lookup(trial):
        return results.get(trial.address)

    while True:
        progress = plan(resolver, lookup)
        if progress.is_finished:
            return progress, batches
        batches.append([trial.label for trial in progress.missing])
        results.update({trial.address: metric(trial) for trial in progress.missing})


def bowl(best):
    """A metric that is lowest where the swept value is `best`."""
    return lambda trial: abs(math.log(trial.value / best))


def test_a_sweep_grows_to_where_the_best_is_inside(config):
    study = make_study(config, sweep=Sweep((1e-3, 3e-3)), stages=(Stage("s", (0,)),))
    progress, batches = run_through(Resolver(study), bowl(5e-2))
    (choice,) = progress.choices["s"]
    # by thirds, to one digit
    assert list(choice.means) == [1e-3, 3e-3, 9e-3, 3e-2, 9e-2]
    assert choice.best == 3e-2 and not choice.at_edge and len(batches) == 4


def test_a_sweep_that_may_not_grow_further_says_that_its_best_lies_at_an_edge(config):
    study = make_study(
        config, sweep=Sweep((1e-3, 3e-3), max_growth=1), stages=(Stage("s", (0,)), Stage("t", (1,)))
    )
    progress, _ = run_through(Resolver(study), bowl(1e-6))
    (first,), (last,) = progress.choices["s"], progress.choices["t"]
    # one value below the edge, to one digit
    assert list(first.means) == [3e-4, 1e-3, 3e-3] and first.best == last.best == 3e-4
    assert first.at_edge and last.at_edge


def test_diverged_trials_are_worst_and_the_sweep_goes_down(config):
    study = make_study(config, sweep=Sweep((1e-2, 3e-2)), stages=(Stage("s", (0,)),))

    limit = 4e-3

    def metric(trial):
        return math.inf if trial.value > limit else trial.value

    progress, _ = run_through(Resolver(study), metric)
    (choice,) = progress.choices["s"]
    assert choice.best < limit


def test_stages_confirm_the_best_value_of_each_form_over_their_own_seeds(config):
    study = make_study(
        config,
        forms=FORMS,
        sweep=Sweep((1e-3, 3e-3, 9e-3)),
        stages=(Stage("screen", (0,), {"steps": 2}), Stage("confirm", (1, 2, 3))),
    )
    resolver = Resolver(study)
    progress, batches = run_through(resolver, bowl(3e-3))
    assert [len(batch) for batch in batches] == [6, 6]
    assert {trial.experiment.steps for trial in progress.trials[:6]} == {2}
    confirmed = progress.trials[6:]
    assert {trial.value for trial in confirmed} == {3e-3}
    # a seed moves the start, dropout and the order of the data together
    assert [(t.experiment.seed, t.experiment.data.seed) for t in confirmed[:3]] == [
        (1, 1),
        (2, 2),
        (3, 3),
    ]


def test_a_form_that_takes_more_steps_shares_its_screening_with_another(config):
    forms = {"short": Form(), "long": Form({"steps": 8})}
    stages = (Stage("screen", (0,), {"steps": 2}), Stage("confirm", (1,)))
    study = make_study(config, forms=forms, stages=stages)
    resolver = Resolver(study)
    screened = [resolver.trial(stages[0], cell, None, 0).address for cell in resolver.cells]
    assert len(set(screened)) == 1
    progress, _ = run_through(resolver, lambda trial: 1.0)
    assert [trial.experiment.steps for trial in progress.trials] == [2, 2, 4, 8]


def test_halving_keeps_the_best_cells(config):
    study = make_study(
        config,
        axes=product(axis("schedule.learning_rate", 1e-3, 2e-3, 3e-3, 4e-3)),
        stages=(Stage("a", (0,), keep=0.5), Stage("b", (1,), keep=0.5), Stage("c", (2, 3))),
        goal="highest",
    )
    progress, batches = run_through(
        Resolver(study), lambda trial: trial.experiment.schedule.learning_rate
    )
    assert [len(batch) for batch in batches] == [4, 2, 2]
    assert [choice.cell.label for choice in progress.choices["c"]] == ["learning_rate=0.004"]


def test_the_plan_is_a_function_of_the_results_whatever_their_order(config):
    study = make_study(config, forms=FORMS, sweep=Sweep((1e-3, 3e-3)), stages=(Stage("s", (0, 1)),))
    metric = bowl(2e-3)
    whole, _ = run_through(Resolver(study), metric)
    results = {}
    for trial in reversed(whole.trials):  # one at a time, the last first, as another machine might
        results[trial.address] = metric(trial)
        progress = plan(Resolver(study), lambda trial: results.get(trial.address))
        assert not set(results) & {trial.address for trial in progress.missing}
    assert progress.is_finished and progress.choices == whole.choices


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"forms": {"a": Form({"method.rnk": 2})}}, r"'method.rnk'; did you mean method.rank\?"),
        ({"axes": axis("nothing", 1)}, "no key of the config ends with 'nothing'"),
        (
            {"forms": {"a": Form(), "b": Form()}},
            "two cells are the same run: 'a' and 'b'",
        ),
        ({"axes": axis("steps", 0)}, "steps=0: config.steps"),
        ({"metric": "quality"}, "the metric is quality: give the study an `evaluation`"),
    ],
)
def test_a_study_that_does_not_fit_its_config_is_refused_before_anything_runs(
    config, settings, message
):
    study = make_study(config, **{"stages": (Stage("s", (0,)),)} | settings)
    with pytest.raises(ValueError, match=message):
        plan(Resolver(study), lambda trial: None)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"stages": (Stage("s", (0,)), Stage("s", (1,)))}, "same name"),
        ({"sweep": Sweep(()), "forms": FORMS}, "no values for the form 'lora'"),
        ({"forms": {"a": Form(values=(1.0,))}}, "the study has no sweep"),
        ({"forms": {"a": Form({"steps": 1})}, "axes": axis("steps", 2)}, "both set 'steps'"),
    ],
)
def test_a_study_that_contradicts_itself_is_refused(config, settings, message):
    with pytest.raises(ValueError, match=message):
        make_study(config, **settings)


def test_a_study_file_is_loaded_and_its_errors_have_their_line(tmp_path):
    file = tmp_path / "study.py"
    file.write_text(
        "from research.studies import Study\n\n\ndef get_study():\n    return Study(claim='x')\n"
    )
    with pytest.raises(ValueError, match=r"study.py, line 5: TypeError: .*'source'"):
        load(tmp_path)
    file.write_text("STUDY = 1\n")
    with pytest.raises(ValueError, match=r"defines no get_study"):
        load(file)
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "nowhere")
