"""Tasks that come with Graft: each says what it asks, builds, and is found by its name."""

import dataclasses
import importlib
import os
import signal

import pytest

from configs.tasks import house_style
from research import cli
from research.commands import tasks
from research.config import cli as configs
from research.config import schema
from research.evaluation.in_training import evaluation_of
from research.evaluation.tasks import Evaluation
from research.experiment import Experiment
from research.runtime import distributed, environment

NAMES = sorted(tasks.find_tasks())


@pytest.mark.parametrize("name", NAMES)
def test_a_task_says_its_questions_and_their_licence(name, capsys):
    task = tasks.find_tasks()[name]
    assert task.questions and task.licence.removeprefix("Licence: ") and task.summary.endswith(".")
    assert configs.load(Evaluation, tasks.task_config(name))
    cli.main(["tasks"])
    printed = capsys.readouterr().out
    assert task.summary in printed and task.licence in printed


def test_an_unknown_task_is_refused_with_the_nearest(capsys):
    with pytest.raises(ValueError, match="no task 'finanse'; did you mean finance"):
        tasks.task_config("finanse")
    for flags in ([], ["--task", "law", "--config", "a.py"]):
        with pytest.raises(SystemExit):
            cli.main(["evaluate", "--run", "a", *flags])
        assert "say what is asked" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("healthcare:x", "healthcare.py has no variants: leave :x out"),
        ("education:x", "education.py:x: there is parables"),
        ("law:x", "law.py:x: there is nearest"),
        ("finance:x", "finance.py:x: there are constrained, retry"),
        ("code:x", "code.py:x: there is base"),
    ],
)
def test_an_unknown_variant_is_refused_with_those_that_there_are(task, message):
    with pytest.raises(SystemExit, match=message):
        cli.main(["evaluate", "--task", task, "--run", "a"])


def test_a_tasks_environment_is_entered_before_other_processes_are_joined(monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(environment, "reexec_in_layer", calls.append)
    monkeypatch.setattr(distributed, "initialize", lambda: calls.append("joined") or True)
    with pytest.raises(SystemExit, match="no checkpoint"):
        cli.main(["evaluate", "--task", "ifeval", "--run", str(tmp_path), "--distributed"])
    assert calls == ["evaluate", "joined"]


def test_a_task_goes_on_in_the_environment_that_its_scorer_needs(monkeypatch, tmp_path):
    """`graft` does; a program that calls it, as this one, stays where it is."""
    commands = []

    def execve(python, command, variables):
        commands.append((str(python), command[1:]))
        raise SystemExit

    python = tmp_path / "evaluate" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()
    monkeypatch.setattr(environment, "ENVIRONMENT", tmp_path)
    monkeypatch.setattr(os, "execve", execve)
    monkeypatch.setenv("GLIBC_TUNABLES", "")
    line = ["evaluate", "--task", "ifeval", "--run", str(tmp_path)]
    with pytest.raises(SystemExit):  # for no run is there
        cli.main(line)
    assert not commands
    monkeypatch.setattr(environment, "program_arguments", line)
    with pytest.raises(SystemExit):
        cli.main([*line[:2], "law", *line[3:]])
    assert not commands
    with pytest.raises(SystemExit):
        cli.main(line)
    assert commands == [(str(python), ["-m", "research.cli", *line])]
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ())  # where it did not start, all are heard


def test_a_task_with_a_training_split_is_tuned_on_as_it_is_asked():
    tuning = importlib.import_module("configs.finetune.smollm2_task")
    for name in tuning.TASKS:
        experiment = configs.load(Experiment, f"configs/finetune/smollm2_task.py:{name}")
        task = configs.load(Evaluation, tasks.task_config(name)).tasks[name]
        assert experiment.data.sources == (task.source,)
        in_training = evaluation_of(experiment).tasks[name]
        changes = {"split": "validation", "max_questions": 16}
        assert in_training == dataclasses.replace(task, **changes)
    with pytest.raises(ValueError, match="there are education, finance"):
        tuning.get_config("law")


@pytest.mark.parametrize(
    ("entry", "broken"),
    [
        ("ADA: an English countess.", set()),
        ("ADA: a version of 3.5 or later.", set()),
        ("Ada: an English countess.", {"title"}),
        ("ADA: English countess.", {"article"}),
        ("ADA: a countess. She wrote.", {"sentence"}),
        ("ADA: a countess", {"sentence"}),
        ("ADA: a countess (1815).", {"brackets"}),
        ("", {"title", "article", "sentence", "brackets"}),
    ],
)
def test_the_rules_of_the_house_are_checked_one_by_one(entry, broken):
    rules = house_style.check_rules(entry, {"title": "Ada"})
    assert {rule for rule, value in rules.items() if not value} - {"all"} == broken
    assert rules["all"] == (not broken)


@pytest.mark.heavy
def test_the_solutions_of_the_code_task_pass_its_tests_and_others_do_not():
    """A quarter of them as a base goes on, and some as a model that says the whole function."""
    for variant in ("", ":base"):
        (task,) = configs.load(Evaluation, tasks.task_config(f"code{variant}")).tasks.values()
        (scorer,) = task.scorers
        questions = task.read()
        assert len(questions) == 164 and ("Complete" in questions[0].text) == (not variant)
        for question in questions[:: 4 if variant else 16]:
            solution = question.record["completion"]
            whole = f"```python\n{question.record['beginning']}{solution}```"
            answer = solution if variant else whole
            assert scorer.score(answer, question.record).values["code"] == 1, question.row
    assert scorer.score("    return None", question.record).values["code"] == 0


def test_a_source_that_says_no_kind_is_a_dataset_wherever_it_stands():
    law = configs.load(Evaluation, "configs/tasks/law.py:nearest").tasks["law"]
    assert law.source.kind == law.retrieval.source.kind == "tfds"
    start = dict(sources=[dict(name="graft_books")], sequence_length=8, batch_size=8)
    experiment = configs.load(Experiment, "configs/quickstart/tune.py:full")
    content = schema.to_dict(experiment) | dict(method=dict(kind="ewc"), start_data=start)
    assert schema.build(Experiment, content).start_data.sources[0].kind == "tfds"
