"""The training program: what it refuses, what it prints, and that every method learns."""

import dataclasses
import itertools
import json
import re
import subprocess
import sys
import types

import numpy as np
import pytest

from research import methods
from research.checkpoints import runs
from research.commands import train as program
from research.data.config import DataConfig
from research.data.pipeline import SourceStatistics
from research.data.run_checks import CheckConfig
from research.data.sources import JsonlConfig
from research.methods import (
    Full,
)
from research.models.config import ComputeConfig
from research.objectives import OBJECTIVES, Causal, Chat
from research.objectives.ul2 import Denoiser
from research.optim.schedules import ScheduleConfig
from research.text import chat_template, tokenizer
from research.text.plain_template import PLAIN
from research.training.describe import ReadingPlan, describe_run
from research.training.loop import train
from tests.helpers import rounding, tiny_run
from tests.methods.cases import BESIDE, CASES


@pytest.fixture
def refusal(world, tmp_path):
    """Runs the program, which must end with an error; gives the message. Nothing is written."""

    def run(*overrides, experiment=None):
        file = tiny_run.config_file(tmp_path, experiment or world.experiment(4))
        workdir = tmp_path / "run"
        with pytest.raises(SystemExit) as end:
            program.main(
                ["--config", str(file), "--workdir", str(workdir)]
                + [f"--config.{override}" for override in overrides]
            )
        assert isinstance(end.value.code, str) and end.value.code.startswith("error: ")
        assert not workdir.exists()
        return end.value.code

    return run


def test_a_misspelt_key_is_named_with_the_nearest_one_and_no_traceback(world, tmp_path):
    file = tiny_run.config_file(tmp_path, world.experiment(4))
    line = tiny_run.command("train", "--config", file, "--workdir", tmp_path / "run")
    process = subprocess.run(
        [*line, "--config.schedule.learning_rte=0.1"],
        cwd=tiny_run.ROOT,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 1 and not (tmp_path / "run").exists()
    assert process.stderr.splitlines() == [
        "error: config.schedule.learning_rte: no such key; "
        "did you mean config.schedule.learning_rate?"
    ]


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["mesh.data=3"], "mesh data=3 fsdp=1 tensor=1 does not fit 8 devices"),
        (
            ["mesh.data=1", "mesh.tensor=8", "model.mlp_width=36"],
            "'mlp' of length 36 does not divide",
        ),
        (["accumulation_steps=3"], "data.batch_size 8 does not divide by accumulation_steps 3"),
        (["accumulation_steps=2"], "a micro-batch of 4 rows does not divide over 8 devices"),
        (
            ["mesh.data=4", "mesh.sequence=2", "method={'kind': 'prompt', 'length': 3}"],
            "and 3 tokens of prompts does not divide over mesh.sequence=2",
        ),
        (["model.vocabulary=100"], "has 288 tokens, but the model's vocabulary only 100"),
        (["init_from=nowhere"], "no checkpoint in .*/nowhere"),
        (["model=None"], "give `init_from`, or `model` and `tokenizer` to start at random"),
        (["tokenizer=nowhere.json"], "no tokenizer at nowhere.json"),
        (["data.sources[0].path=nowhere.jsonl"], "Source 'prose': there is no file nowhere.jsonl"),
        (["data.sources[0].fields={'text': 'txt'}"], r"jsonl:1: there is no field 'txt'.*text"),
        (["evaluate_split=test"], "there is no file .*prose-test.jsonl"),
        (["evaluate_split=train"], "'prose': its split 'train' is held out and trained on"),
        (["checks.splits=['test']"], "there is no file .*prose-test.jsonl"),
        (["checks.overlap=2"], "config.checks.overlap: .* less than or equal to 1"),
        (["schedule.warmup=4"], "warm-up of 4 steps in a run of 4"),
        (["method={'kind': 'lora', 'rank': 99}"], "rank 99 does not fit a weight of 16 x 16"),
        (["method={'kind': 'partial', 'patterns': ['layer/.*']}"], "'layer/.*' matches nothing"),
        (
            ["weight_decay_rules=[['norm', 0.0]]"],
            "weight_decay_rules: pattern 'norm' matches nothing",
        ),
        (["checkpoint.keep_best=true"], "keep_best .*evaluate_split"),
    ],
    ids=lambda value: value[-1].split("=")[0] if isinstance(value, list) else "",
)
def test_what_does_not_fit_is_named_before_anything_is_written(refusal, overrides, message):
    error = refusal(*overrides)
    assert re.search(message, error), error


def test_an_empty_corpus_is_refused(refusal, tmp_path):
    (tmp_path / "empty.jsonl").touch()
    message = refusal(f"data.sources[0].path={tmp_path}/empty.jsonl")
    assert message == "error: Source 'prose:train' is empty: there is nothing to learn from."


@dataclasses.dataclass(frozen=True)
class Untrained(Causal):
    """An objective that trains on nothing, and says so or not."""

    honest: bool = True

    def prepare(self, table, tokenizer, window):
        examples = super().prepare(table, tokenizer, window)

        def piece(index, start, stop):
            whole = examples.piece(index, start, stop)
            return dataclasses.replace(whole, weights=np.zeros_like(whole.weights))

        trained = examples.trained * (not self.honest)
        return dataclasses.replace(examples, trained=trained, piece=piece)


@pytest.mark.parametrize(
    "honest, message",
    [(True, "has no token to train on: all of its text is masked"), (False, "never trains end-of")],
)
def test_data_that_is_all_masked_is_refused(world, tmp_path, honest, message):
    data = world.data(objective=Untrained(honest=honest))
    with pytest.raises(ValueError, match=f"Source 'prose:train' {message}"):
        train(world.experiment(2, data=data), tmp_path)


def test_a_dry_run_plans_and_writes_nothing(world, tmp_path, capsys):
    file = tiny_run.config_file(tmp_path, world.experiment(4))
    program.main(["--config", str(file), "--workdir", str(tmp_path / "run"), "--dry-run"])
    plan = capsys.readouterr().out
    assert "9,808 parameters, 9,808 train (100.00%), method full" in plan
    assert (
        "prose: text, 48 documents" in plan and "GiB a device" in plan and "random weights" in plan
    )
    assert not (tmp_path / "run").exists()


def test_the_plan_says_each_sources_format_and_the_lines_left_out():
    schedule = ScheduleConfig(1e-3, "constant", steps=2)
    experiment = types.SimpleNamespace(steps=3, init_from=None, method=Full(), schedule=schedule)
    plan = types.SimpleNamespace(
        experiment=experiment,
        mesh=types.SimpleNamespace(shape={"data": 1}),
        trainable_parameters=1,
        parameters=2,
        flops_per_token=6.0,
        stacks=("layers/0",),
        start=None,
    )
    source = SourceStatistics(
        format="alpaca",
        bad_lines=0,
        documents=9,
        tokens=99,
        bytes=400,
        rows=3,
        fill=1.0,
        trained_share=0.5,
        truncated=0,
        share=0.5,
        epochs=2.0,
        tokens_read=198.0,
    )
    sources = {"good": source, "torn": dataclasses.replace(source, bad_lines=1234)}
    reading = ReadingPlan(sources, 99.0, ["from step 0: good 100.0%"])
    text = describe_run(plan, reading, 0)
    assert "data       good: alpaca, 9 documents, 99 tokens, reads 198 (2 epochs), " in text
    assert "mixture from step 0: good 100.0%" in text
    assert "rates      constant, 0.001 at most, over 2 steps, 0.001 at step 3" in text
    assert "torn: alpaca, 9 documents, 1,234 bad lines left out, 99 tokens, " in text


@pytest.mark.heavy
def test_a_tune_says_how_its_base_is_computed_and_a_run_lends_its_tokenizer(world, tmp_path):
    compute = ComputeConfig(max_scan_layers=1, remat="full", compute_dtype="bfloat16")
    start = world.tuning(1, compute=compute)
    train(start, tmp_path / "tuned")
    base, tuned = runs.open_run(world.base), runs.open_run(tmp_path / "tuned")
    assert tuned.model == compute.apply(base.model) != base.model
    alone = dataclasses.replace(start, init_from=None, model=base.model, tokenizer=str(world.base))
    train(alone, tmp_path / "alone")
    assert runs.open_run(tmp_path / "alone").tokenizer.roles == base.tokenizer.roles


def test_help_imports_no_jax():
    code = """if True:
        import contextlib, io, sys
        from research import cli
        # the others run in an environment of their own, or measure JAX
        for name in set(cli.COMMANDS) - set(cli.LAYERS) - {"bench"}:
            output = io.StringIO()
            with contextlib.redirect_stdout(output), contextlib.suppress(SystemExit):
                cli.main([name, "--help"])
            assert f"usage: graft {name} " in output.getvalue(), name
        heavy = {"jax", "flax", "orbax", "tensorflow_datasets", "grain"} & set(sys.modules)
        assert not heavy, heavy
    """
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=tiny_run.ROOT, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr


LEARNERS = {name: case for name, case in (CASES | BESIDE).items() if case.learning_rate}


def test_every_method_is_trained_below():
    # rows of a bank are what its adapters are (tests/adapters/test_banks.py); a classifier says no
    # tokens (test_classifier_runs)
    kinds = {case.method.kind for case in LEARNERS.values()}
    assert kinds == set(methods.METHODS) - {"bank", "classifier"}


# the others learn with tools/test --all
QUICK = ("full", "lora", "prompt-text")


@pytest.mark.parametrize(
    "case",
    [c if c in QUICK else pytest.param(c, marks=pytest.mark.heavy) for c in LEARNERS],
)
def test_every_method_learns(world, tmp_path, case):
    method, rate = LEARNERS[case].method, LEARNERS[case].learning_rate
    changes = dict(start_data=world.data()) if method.needs_start_data else {}
    schedule = ScheduleConfig(rate, "constant")
    train(world.tuning(20, method=method, schedule=schedule, **changes), tmp_path)
    losses = [json.loads(line)["loss"] for line in tiny_run.lines(tmp_path)]
    # a base of two thin layers leaves less to vectors in front of it
    share = 2 if method.kind in ("prompt", "prefix") else 3
    assert len(losses) == 20 and np.mean(losses[-4:]) < losses[0] / share


SETTINGS = {
    "fill_in_the_middle": {"prefix": "\x01", "suffix": "\x02", "middle": "\x03"},
    "masked": {"mask": "\x01"},
    "prefix_lm": {},
    "span_corruption": {"sentinel": "<{number}>", "rate": 0.3},
    "ul2": {"sentinel": "<{number}>", "denoisers": (Denoiser("\x01", 0.3, 3.0), Denoiser("\x02"))},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_every_objective_learns(world, tmp_path, name):
    train(
        world.experiment(30, data=world.data(objective=OBJECTIVES[name](**SETTINGS[name]))),
        tmp_path,
    )
    losses = [json.loads(line)["loss"] for line in tiny_run.lines(tmp_path)]
    assert len(losses) == 30 and np.mean(losses[-4:]) < losses[0] / 4


def test_every_objective_is_trained_somewhere():
    assert set(OBJECTIVES) == {
        "causal",
        "supervised",
        "chat",
        *SETTINGS,
        "classification",  # test_classifier_runs
        "regression",
        "preference",  # test_preference_runs
        "rollouts",  # tests/phases
        "labelled_answers",
    }  # the base and its tunes


@pytest.mark.heavy
def test_conversations_are_learnt_and_their_template_follows_the_model(world, tmp_path):
    turns = [
        [{"role": "user", "content": "roof"}, {"role": "assistant", "content": colour}]
        for colour in tiny_run.COLOURS * 4
    ]
    talks = [first + second for first, second in itertools.pairwise(turns)]
    lines = "".join(json.dumps({"messages": talk}) + "\n" for talk in talks)
    (tmp_path / "talks.jsonl").write_text(lines)
    source = JsonlConfig("talks", str(tmp_path / "talks.jsonl"))
    data = DataConfig((source,), sequence_length=96, batch_size=8, objective=Chat())
    train(world.experiment(30, data=data), tmp_path / "run")
    losses = [json.loads(line)["loss"] for line in tiny_run.lines(tmp_path / "run")]
    assert len(losses) == 30 and np.mean(losses[-4:]) < losses[0] / 2
    run = runs.open_run(tmp_path / "run")
    assert (
        run.sidecar_files[chat_template.TEMPLATE].decode() == PLAIN == run.tokenizer.chat_template
    )
    # so it does where the tokenizer's file is given too, and tunes are held to it
    start = {"model": None, "init_from": str(tmp_path / "run")}
    again = world.experiment(1, data=world.questions(), **start)
    assert again.tokenizer and runs.open_base_and_tokenizer(again)[1].chat_template == PLAIN
    with pytest.raises(ValueError, match=r"unlike the chat template(?s:.*)Q: What is red"):
        train(again, tmp_path / "tuned")
    train(dataclasses.replace(again, checks=CheckConfig(other_template=True)), tmp_path / "tuned")


def test_summary_counts_the_whole_run(world):
    summary = json.loads((world.base / "summary.json").read_text())
    documents = [line for line in (world.folder / "prose-train.jsonl").read_text().splitlines()]
    run_tokenizer = tokenizer.load(world.folder / "tokenizer.json")
    tokens = sum(len(run_tokenizer.encode(json.loads(line)["text"])) + 1 for line in documents)
    assert summary["steps"] == 30 and summary["finished"]
    assert summary["documents"] == len(documents) == 48
    expected = summary["examples"] / 48 * tokens
    rounding.assert_close(summary["tokens"], expected, roundings=2, unit=rounding.FLOAT64)
    assert summary["parameters"] == summary["trainable_parameters"] == 9808
    assert 0 < summary["loss"] < 2
