"""Studies that really run: once each, after kills and failures, and in several processes."""

import json
import platform
import random
import signal
import subprocess
import time

import jax
import pytest

from research import cli
from research.config import schema
from research.evaluation.in_training import open_tasks
from research.runtime import distributed
from research.studies import Form, Stage, Study, results, running
from research.studies.desk import Desk
from research.studies.ledger import Ledger
from research.training import choice
from research.training.session import Session
from tests.helpers import rounding, tiny_run

LORA = {"kind": "lora", "rank": 2}
ANSWER = """
from research.studies import Answer


def losses_of_forms(trials):
    lines = [{"form": trial["form"], "loss": trial["heldout_loss"]} for trial in trials]
    return [Answer("Which is lower", f"Of {len(trials)} trials.", lines)]
"""
FORMS = {"slow": Form({"learning_rate": 1e-3}), "fast": Form({"learning_rate": 1e-2})}


@pytest.fixture
def config(world, tmp_path):
    experiment = world.tuning(2, evaluate_split="heldout")
    return str(tiny_run.config_file(tmp_path, experiment))


@pytest.fixture
def trained(monkeypatch):
    """The folders in which a run was started, in order."""
    folders = []

    def train(experiment, workdir, **settings):
        folders.append(workdir)
        return run(experiment, workdir, **settings)

    run = running.train
    monkeypatch.setattr(running, "train", train)
    return folders


def make_study(config, **settings):
    own = {"claim": "", "forms": FORMS, "stages": (Stage("s", (0,)),)}
    return Study(source="", refuted_if="", config=config, **own | settings)


def test_a_sweep_runs_each_trial_once_and_goes_on_with_more_values(
    config, trained, tmp_path, capsys
):
    line = ["sweep", "--config", config, "--folder", str(tmp_path / "sweep"), "--axis"]
    cli.main([*line, "learning_rate=1e-3,1e-2"])
    first = capsys.readouterr().out
    assert len(trained) == 2 and "learning_rate=0.001" in first and "held-out loss" in first
    cli.main([*line, "learning_rate=1e-3,1e-2,3e-2", "--csv", str(tmp_path / "all.csv")])
    assert len(trained) == 3
    names, *rows = (tmp_path / "all.csv").read_text().splitlines()
    assert len(rows) == 3 and {"heldout_loss", "schedule.learning_rate"} <= set(names.split(","))


def test_a_trial_has_the_numbers_of_the_run_alone(world, tmp_path):
    source = schema.to_dict(world.questions())["sources"][0]
    labels = {"labels": tiny_run.COLOURS, "reference": "completion", "batch_size": 8}
    colours = {"kind": "multiple_choice", "source": source, "split": "heldout", **labels}
    experiment = world.tuning(
        2, evaluate_split="heldout", evaluation={"tasks": {"colours": colours}}
    )
    config = str(tiny_run.config_file(tmp_path, experiment))
    with pytest.raises(ValueError, match="no trial will have the metric 'coluors/right'"):
        Desk(make_study(config, metric="coluors/right"), tmp_path / "study")
    desk = Desk(make_study(config, metric="colours/right"), tmp_path / "study")
    desk.run()
    rows, progress = desk.look()
    trial = progress.trials[1]
    alone = running.train(trial.experiment, tmp_path / "alone", session=Session(open_tasks))
    row = rows[trial.address]
    for name in ("heldout_loss", "colours/right", "colours/right/bytes_high"):
        assert row[name] == alone.metrics[name]
    assert row["trainable_parameters"] == alone.trainable_parameters
    # the models are gone, the log and the metrics are there
    folder = tmp_path / "study/trials" / trial.address
    assert not (folder / "run/model").exists() and (folder / "run/metrics.jsonl").exists()
    assert "method full" in (folder / running.LOG).read_text()


@pytest.mark.heavy
def test_trials_that_train_together_have_the_rows_of_single_ones(
    config, world, tmp_path, monkeypatch
):
    class OneDevice(Session):
        """Single trials work on one device, as those of a group do."""

        def make_program(self, experiment, base, devices=None):
            return super().make_program(experiment, base, jax.devices()[:1])

    monkeypatch.setattr(running, "Session", OneDevice)
    one_device = choice.Choice("map", tuple(jax.devices()[:1]))
    monkeypatch.setattr(choice, "probe", lambda session, opened_runs: one_device)
    forms = FORMS | {"bad": Form({"learning_rate": 1e38}), "wide": Form({"method": LORA})}
    study = make_study(config, forms=forms, changes={"max_skipped": 1})
    rows = {}
    for size in (1, 4):
        desk = Desk(study, tmp_path / str(size))
        desk.run(together=size)
        rows[size] = desk.ledger.read()
    assert rows[1].keys() == rows[4].keys()
    assert sorted(row["status"] for row in rows[4].values()) == ["diverged"] + ["finished"] * 3
    for address, row in rows[4].items():
        alone = rows[1][address]
        same = ("status", "skipped", "steps", "tokens")
        assert [row.get(name) for name in same] == [alone.get(name) for name in same]
        if row["status"] == "finished":  # the tests' compiler fuses otherwise inside a map
            losses = row["heldout_loss"], alone["heldout_loss"]
            rounding.assert_close(*losses, roundings=tiny_run.ROUNDINGS)
        assert row.get("together") == (None if row["form"] == "wide" else 3)
        log = (tmp_path / "4/trials" / address / running.LOG).read_text()
        assert ("together   3 trials, map" in log) == (row["form"] != "wide")


@pytest.mark.heavy
def test_models_are_evaluated_and_what_they_forgot_counts_from_their_base(
    config, world, tmp_path, capsys
):
    evaluation = tmp_path / "evaluate.py"
    choice = {"source": world.questions().sources[0], "objective": world.questions().objective}
    tasks = {
        "text": {"sources": world.data().sources, "sequence_length": 32, "batch_size": 8},
        "choice": choice | {"split": "heldout", "sequence_length": 32, "batch_size": 8},
    }
    content = json.dumps(schema.to_dict(tasks))
    evaluation.write_text(
        f"import json\n\n\ndef get_config():\n    return json.loads({content!r})\n"
    )
    study = make_study(config, evaluation=str(evaluation), metric="quality", goal="highest")
    desk = Desk(study, tmp_path / "study")
    (before,) = desk.resolver.before()
    missing = desk.look()[1].missing  # no trial waits for what the base answers
    assert missing[0] == before and len(missing) == 3
    desk.run()
    rows, progress = desk.look()
    assert len(rows) == 3 and progress.trials[0] == before
    for trial in progress.trials[1:]:
        row = rows[trial.address]
        expected = row["bits_per_byte"] - rows[before.address]["bits_per_byte"]
        assert results.forgetting(desk.resolver, rows, row) == {"forgetting": expected}
        assert len(row["correct"]) == 12 and row["artifact_bytes"] > 0
    assert results.forgetting(desk.resolver, rows, rows[before.address]) == {}
    desk.print_table()
    text = capsys.readouterr().out
    assert "base, not tuned" in text and "forgetting" in text


@pytest.mark.heavy
def test_failures_are_kept_shown_and_run_again_when_asked(
    config, trained, tmp_path, capsys, monkeypatch
):
    bad = make_study(config, forms=FORMS | {"bad": Form({"learning_rate": 1.0})})
    run, broken = running.train, [True]

    def train(experiment, workdir, **settings):
        if broken[0] and experiment.schedule.learning_rate == 1e-2:
            raise OSError("the disk is full")
        if experiment.schedule.learning_rate == 1.0:
            raise FloatingPointError("10 steps in a row")
        return run(experiment, workdir, **settings)

    monkeypatch.setattr(running, "train", train)
    desk = Desk(bad, tmp_path / "study")
    with pytest.raises(SystemExit) as end:
        desk.run()
    assert end.value.code == 1 and len(trained) == 1
    desk.print_status()
    text = capsys.readouterr().out
    assert "s: 1 diverged, 1 failed, 1 finished" in text
    assert f"s: fast seed=0: failed on {platform.node()}: OSError: the disk is full" in text
    broken[0] = False
    with pytest.raises(SystemExit):  # not by itself
        desk.run()
    assert len(trained) == 1
    desk.run(retry=True)
    assert len(trained) == 2
    desk.print_status()
    assert "s: 1 diverged, 2 finished" in capsys.readouterr().out


@pytest.mark.heavy
def test_a_damaged_row_is_said_and_its_trial_runs_again(config, trained, tmp_path, capsys):
    desk = Desk(make_study(config), tmp_path / "study")
    desk.run(trials=1)
    assert len(trained) == 1
    desk.run()
    before = desk.ledger.read()
    file = next((tmp_path / "study/rows").iterdir())
    file.write_bytes(file.read_bytes()[:-1])
    again = Desk(make_study(config), tmp_path / "study")
    again.run()
    assert f"{file.name} in the ledger is damaged" in capsys.readouterr().out
    after = again.ledger.read()
    assert len(trained) == 3 and {a: r["heldout_loss"] for a, r in after.items()} == {
        a: r["heldout_loss"] for a, r in before.items()
    }


@pytest.mark.heavy
def test_a_signal_that_comes_after_the_last_step_of_a_trial_ends_the_study(
    config, monkeypatch, tmp_path
):
    def train_and_signal(*arguments, **settings):
        with distributed.catch_stop_signals():
            summary = train(*arguments, **settings)
            signal.raise_signal(signal.SIGTERM)
        return summary

    train = running.train
    monkeypatch.setattr(running, "train", train_and_signal)
    for count in (1, 2):
        with pytest.raises(SystemExit, match="75"):
            Desk(make_study(config), tmp_path / "study").run(together=1)
        assert len(Ledger(tmp_path / "study").read()) == count
    # this process lives on, and others may go on with its trials
    assert not list((tmp_path / "study").glob("trials/*/run/.lock"))


@pytest.mark.heavy
def test_results_of_older_code_count_where_the_study_says_so(
    config, trained, tmp_path, capsys, monkeypatch
):
    Desk(make_study(config), tmp_path / "study").run()
    monkeypatch.setattr("research.studies.trials.code_hash", lambda: "0123456789abcdef")
    monkeypatch.setattr("research.studies.results.SAME_NUMBERS", ())
    code = next(iter(Ledger(tmp_path / "study").read().values()))["code"]
    desk = Desk(make_study(config), tmp_path / "study")
    desk.print_plan()
    assert (
        f"2 missing trials have results of other code: they run again, unless the study says "
        f"accepted_code=('{code}',)" in capsys.readouterr().out
    )
    Desk(make_study(config, accepted_code=(code,)), tmp_path / "study").run()
    monkeypatch.setattr("research.studies.results.SAME_NUMBERS", (code,))
    Desk(make_study(config), tmp_path / "study").run()
    assert len(trained) == 2


@pytest.mark.heavy
def test_the_report_of_one_ledger_is_the_same_bytes(config, tmp_path):
    home = tmp_path / "experiments/tiny"
    home.mkdir(parents=True)
    (home / "answers.py").write_text(ANSWER)
    study = make_study(
        config, claim="fast ends lower", answers=f"{home}/answers.py:losses_of_forms"
    )
    desk = Desk(study, tmp_path / "study", home)
    desk.run()
    desk.write_report()
    names = ("README.md", "report.html", "verdicts.json", "ledger.parquet")
    names += ("plots/cells.svg", "plots/cells.png")
    first = [(home / name).read_bytes() for name in names]
    # from the kept ledger alone
    elsewhere = Desk(study, tmp_path / "nothing", home)
    elsewhere.write_report()
    assert [(home / name).read_bytes() for name in names] == first
    text = (home / "README.md").read_text()
    assert "**Claim.** fast ends lower" in text
    # what the study works out of its trials
    assert "## Which is lower\n\nOf 2 trials.\n\n| form |" in text
    assert "<h2>Which is lower</h2>" in (home / "report.html").read_text()


@pytest.mark.heavy
def test_sql_reaches_the_trials_and_no_files(config, tmp_path, capsys):
    desk = Desk(make_study(config), tmp_path / "study")
    desk.run()
    capsys.readouterr()
    desk.print_query("SELECT form, round(heldout_loss, 3) AS loss FROM trials ORDER BY loss")
    assert capsys.readouterr().out.splitlines()[2].startswith("| fast |")
    for sql in ("SELECT * FROM nothing", "SELECT * FROM read_csv('/etc/passwd')"):
        with pytest.raises(ValueError, match="nothing|disabled"):
            desk.print_query(sql)


@pytest.mark.heavy
def test_killed_studies_and_two_at_once_end_in_the_same_ledger(world, tmp_path):
    experiment = world.tuning(6, evaluate_split="heldout")
    config = tiny_run.config_file(tmp_path, experiment)

    def start(folder, *more):
        line = ["--config", config, "--folder", folder, "--seeds", 3, *more]
        line += ["--axis", "learning_rate=1e-3,1e-2"]
        return subprocess.Popen(
            tiny_run.command("sweep", *line),
            cwd=tiny_run.ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def losses(folder):
        rows = Ledger(folder).read()
        return {address: row["heldout_loss"] for address, row in rows.items()}

    assert start(tmp_path / "whole").wait() == 0
    expected = losses(tmp_path / "whole")
    assert len(expected) == 6
    rng = random.Random(0)
    for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGTERM):
        process = start(tmp_path / "killed", "--workers", 2)  # the other one ends with it
        time.sleep(rng.uniform(5, 9))
        process.send_signal(number)
        process.communicate()
    processes = [start(tmp_path / "killed") for _ in range(2)]
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert losses(tmp_path / "killed") == expected
