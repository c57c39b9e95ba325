"""Ways that train no weights stand in a study's table on the same labels and questions."""

import json

import pytest

from research.checkpoints import runs
from research.config import schema
from research.data.sources import open_source
from research.evaluation import baselines, report
from research.studies import Form, Stage, Study, axis, product, variants, ways
from research.studies.desk import Desk
from research.studies.trials import Resolver
from tests.helpers import tiny_run

MEASURE = """
def size(run, experiment):
    return {"steps_of_run": run.checkpoint.step, "rate": experiment.schedule.learning_rate}
"""


@pytest.fixture
def study(world, tmp_path):
    experiment = world.tuning(1, evaluate_split="heldout")
    source = schema.to_dict(world.questions().sources[0])
    choice = {"source": source, "objective": schema.to_dict(world.questions().objective)}
    tasks = {"choice": choice | {"split": "heldout", "sequence_length": 32, "batch_size": 8}}
    (tmp_path / "evaluate.py").write_text(f"def get_config():\n    return {tasks!r}\n")
    (tmp_path / "measures.py").write_text(MEASURE)
    settings = {
        "claim": "tuning is not needed",
        "source": "",
        "refuted_if": "",
        "config": str(tiny_run.config_file(tmp_path, experiment)),
        "changes": {"data.sources[0].max_records": 8},
        "forms": {
            "full": Form({"learning_rate": 1e-3}),
            "one shot": Form({"evaluation.choice.shots": 1}, way="prompted"),
            "tf-idf": Form(way="tfidf_linear"),
        },
        "stages": (Stage("screen", (0,), evaluated=False), Stage("confirm", (0, 1))),
        "seed_keys": ("seed", "data.seed", "data.sources[0].sample_seed"),
        "evaluation": str(tmp_path / "evaluate.py"),
        "measures": (str(tmp_path / "measures.py:size"),),
    }
    return lambda **changes: Study(**settings | changes)


@pytest.mark.heavy
def test_prompts_and_classifiers_answer_beside_tuned_models(study, world, tmp_path, capsys):
    desk = Desk(study(), tmp_path / "study")
    desk.run()
    rows, progress = desk.look()
    assert progress.is_finished
    stages = [(trial.stage, trial.cell.form) for trial in progress.trials]
    screen_row = next(rows[t.address] for t in progress.trials if t.stage == "screen")
    assert "quality" not in screen_row and "heldout_loss" in screen_row
    assert stages.count(("screen", "full")) == 1 and ("screen", "tf-idf") not in stages
    by_form = {
        trial.cell.form: (trial, rows[trial.address])
        for trial in progress.trials
        if trial.stage == "confirm" and trial.seed == 1
    }
    assert {row["questions"] for _, row in by_form.values()} == {12}
    # a number of the tuned model that only this study asks for
    assert by_form["full"][1]["steps_of_run"] == 1 and by_form["full"][1]["rate"] == 1e-3

    # each is what it is alone, on the eight records that its seed draws
    trial, row = by_form["tf-idf"]
    source = trial.experiment.data.sources[0]
    assert (source.max_records, source.sample_seed, row["labels"]) == (8, 1, 8)
    train, other_split = open_source(source), open_source(source, "heldout")
    predictions, _ = baselines.tfidf_linear(
        [train[i]["prompt"] for i in range(8)],
        [train[i]["completion"] for i in range(8)],
        [other_split[i]["prompt"] for i in range(len(other_split))],
    )
    correct = [other_split[i]["completion"] == text for i, text in enumerate(predictions)]
    assert row["correct"] == correct and "heldout_loss" not in row

    trial, row = by_form["one shot"]
    alone = report.evaluate_run(runs.open_run(world.base), trial.evaluation)
    right = [answer.scores["right"] == 1 for answer in alone.tasks["choice"].answers]
    assert trial.evaluation.choice.shots == 1 and row["correct"] == right
    assert row["trainable_parameters"] == 0
    desk.print_table()
    assert "tf-idf" in capsys.readouterr().out


def test_a_way_depends_on_what_it_reads_alone(study, tmp_path):
    def addresses(**changes):
        desk = Desk(study(**changes), tmp_path / "study")
        stage, number = desk.resolver.study.stages[-1], 0
        trials = [desk.resolver.trial(stage, cell, None, number) for cell in desk.resolver.cells]
        return [trial.inputs for trial in trials]

    plain = addresses()
    other_steps = addresses(changes={"data.sources[0].max_records": 8, "steps": 2})
    assert [a == b for a, b in zip(plain, other_steps, strict=True)] == [False, True, True]
    other_labels = addresses(changes={"data.sources[0].max_records": 9})
    assert [a == b for a, b in zip(plain, other_labels, strict=True)] == [False] * 3
    (tmp_path / "measures.py").write_text(MEASURE + "\n")
    assert [a == b for a, b in zip(plain, addresses(), strict=True)] == [False, True, True]


def test_a_task_that_is_changed_leaves_a_way_its_few_labels_and_all_answers(study, world, tmp_path):
    source = schema.to_dict(world.questions().sources[0])
    task = {"data.sources": [source], "evaluation.choice.source": source}
    few = study(
        changes={},
        axes=product(variants("task", same=task), axis("data.sources[0].max_records", 1)),
    )
    resolver = Desk(few, tmp_path / "study").resolver
    trials = [resolver.trial(few.stages[1], cell, None, 1) for cell in resolver.cells]
    of_way = {trial.way: trial for trial in trials}
    for way in ("prompted", "tfidf_linear"):
        choice = of_way[way].evaluation.choice
        assert (choice.source.max_records, choice.source.sample_seed) == (1, 1)
    prompted, classifier = of_way["prompted"], of_way["tfidf_linear"]
    ways.answer("prompted", prompted.evaluation, prompted.experiment)
    assert prompted.evaluation.choice.labels == sorted(tiny_run.COLOURS)
    _, columns = ways.answer("tfidf_linear", classifier.evaluation, classifier.experiment)
    assert columns["labels"] == 1 and columns["questions"] == 12


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({"way": "guessed"}, "there are: tuned, prompted"),
        ({"way": "majority", "values": (1.0,)}, "has no sweep"),
    ],
)
def test_a_form_that_mixes_ways_is_refused(form, message):
    with pytest.raises(ValueError, match=message):
        Form(**form)


def test_named_values_change_several_keys_and_tables_say_their_names(study, tmp_path):
    one, two = ({"data.sources[0].max_records": n, "steps": n} for n in (1, 2))
    forms = {"full": Form({"learning_rate": 1e-3}), "tf-idf": Form(way="tfidf_linear")}
    plain = study(
        changes={},
        forms=forms,
        axes=product(variants("size", one=one, two=two), axis("log_every", 1, 2)),
        only=lambda form, point: form == "full" or point == {"size": "one", "log_every": 1},
        stages=(Stage("confirm", (0,)),),
    )
    resolver = Desk(plain, tmp_path / "study").resolver
    labels = [cell.label for cell in resolver.cells]
    assert labels[0] == "full size=one log_every=1" and len(labels) == 5
    experiments = {
        cell.label: resolver.trial(plain.stages[0], cell, None, 0).experiment
        for cell in resolver.cells
    }
    content = json.loads(json.dumps(plain.to_dict()))  # what a page has of it
    assert "axes" in content and not {"only", "sweep", "metric"} & set(content)
    two_records = experiments["full size=two log_every=2"]
    assert (two_records.steps, two_records.data.sources[0].max_records) == (2, 2)
    assert two_records.log_every == 2


def test_keys_of_the_evaluation_change_what_is_asked(study, tmp_path):
    few = study(axes=axis("evaluation.max_questions", 3, 5))
    resolver = Desk(few, tmp_path / "study").resolver
    trials = [resolver.trial(few.stages[1], cell, None, 0) for cell in resolver.cells]
    assert [trial.evaluation.choice.max_questions for trial in trials] == [3, 5] * 3
    assert len({trial.inputs for trial in trials}) == 6
    with pytest.raises(ValueError, match="max_questions is set, but the study has no `evaluation`"):
        forms = {"full": Form()}
        bare = study(axes=few.axes, evaluation=None, measures=(), forms=forms)
        Desk(bare, tmp_path / "study").look()


def test_a_measure_that_is_not_there_is_an_error_before_anything_runs(study, tmp_path):
    with pytest.raises(FileNotFoundError, match="no file absent.py"):
        Desk(study(measures=("absent.py:size",)), tmp_path / "study").look()
    with pytest.raises(ValueError, match="write path/to/file.py:function"):
        Desk(study(measures=("absent",)), tmp_path / "study").look()


def test_a_base_that_is_asked_two_things_stands_in_the_table_with_both(study):
    number = "evaluation.choice.max_questions"
    tasks = variants("task", few={number: 5}, all={number: 9})
    both = Resolver(study(axes=product(tasks, axis("steps", 1, 2)))).before()
    assert [trial.cell.label for trial in both] == [
        "base, not tuned task=few",
        "base, not tuned task=all",
    ]
    assert len({trial.cell for trial in both}) == len({trial.address for trial in both}) == 2
    (alone,) = Resolver(study()).before()
    assert alone.cell.label == "base, not tuned"
