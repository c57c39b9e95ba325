"""The tasks of a run: asked of its model as it trains, and what is refused before that."""

import dataclasses
import json
import shutil
from typing import Any

import jax
import pytest

from research.checkpoints import runs
from research.config import paths, schema
from research.evaluation.in_training import TasksInTraining, metrics_of, open_tasks
from research.evaluation.report import evaluate_run, read_evaluation
from research.evaluation.tasks import Evaluation
from research.experiment import CheckpointConfig
from research.methods import LoRA
from research.objectives import Masked
from research.text.tokenizer import load
from research.training.loop import train
from research.training.session import Session
from tests.helpers import tiny_run


def evaluation(world, **changes):
    """All kinds of tasks, on the questions that are held out."""
    path = str(world.folder / "questions-{split}.jsonl")
    source = dict(kind="jsonl", name="questions", path=path)
    words = dict(
        kind="generation",
        source=source,
        split="heldout",
        scorers=[dict(kind="exact_match"), dict(kind="token_f1")],
        max_tokens=4,
        max_questions=6,
        batch_size=8,
    )
    options = dict(
        kind="multiple_choice",
        source=source,
        split="heldout",
        labels=tiny_run.COLOURS,
        reference="completion",
        batch_size=8,
    )
    samples = dict(samples=8, sampling=dict(temperature=1.0), pass_at=[1, 2], max_questions=2)
    samples |= dict(scorers=[dict(kind="exact_match")])
    prose = dict(kind="jsonl", name="prose", path=str(world.folder / "prose-{split}.jsonl"))
    content = dict(
        tasks=dict(words=words, options=options, samples=words | samples),
        choice=dict(
            source=source,
            objective=dict(template="Q: {prompt}\nA: "),
            split="heldout",
            sequence_length=64,
            batch_size=8,
        ),
        text=dict(sources=[prose], sequence_length=32, batch_size=8),
    )
    return content | changes


def lines(folder):
    """Step -> what was measured of it."""
    rows = [json.loads(line) for line in tiny_run.lines(folder)]
    return {row.pop("step"): row for row in rows if "loss" not in row}


@pytest.fixture
def compilations():
    events = []

    def listen(event, *_, **__):
        if "backend_compile" in event:
            events.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield events
    jax.monitoring.unregister_event_duration_listener(listen)


def counting_compilations(events, counts, names):
    """Opens tasks that add to `counts` what each evaluation compiles, to `names` their metrics."""

    def open_counting(program, data):
        tasks = open_tasks(program, data)
        names.extend(tasks.metrics)

        def measure(model):
            before = len(events)
            metrics = tasks(model)
            counts.append(len(events) - before)
            return metrics

        return CountingTasks(measure, tasks.metrics, tasks.describe, tasks.keys)

    return open_counting


@dataclasses.dataclass(frozen=True)
class CountingTasks:
    measure: Any
    metrics: Any
    describe: Any
    keys: Any

    def __call__(self, model):
        return self.measure(model)


@pytest.mark.heavy
def test_a_run_is_asked_its_tasks_and_trains_the_same_bits(world, tmp_path, compilations):
    content, counts, names = evaluation(world), [], []
    plain = world.tuning(3, method=LoRA(rank=2), evaluate_split="heldout")
    experiment = dataclasses.replace(plain, evaluation=content, evaluate_every=1)
    session = Session(counting_compilations(compilations, counts, names))
    train(experiment, tmp_path / "asked", session=session)
    train(plain, tmp_path / "plain")
    assert tiny_run.content(tmp_path / "asked") == tiny_run.content(tmp_path / "plain")
    assert counts[0] > 0 and counts[1:] == [0, 0]
    measured = lines(tmp_path / "asked")
    assert list(measured) == [1, 2, 3]
    run = runs.open_run(tmp_path / "asked")
    expected = metrics_of(evaluate_run(run, schema.build(Evaluation, content)).tasks)
    for name, value in expected.items():
        assert name.endswith("/seconds") or measured[3][name] == value, name
    heldout = {"heldout_loss", "heldout_bits_per_byte"}
    assert set(expected) | heldout == set(measured[3])
    beside = ("_low", "_high", "/seconds")
    assert set(names) == {name for name in expected if not name.endswith(beside)}
    assert "samples/pass@2/exact_match" in names
    assert len({row["bits_per_byte/prose"] for row in measured.values()}) == 3
    summary = json.loads((tmp_path / "asked" / "summary.json").read_text())
    assert summary["options/right_high"] == measured[3]["options/right_high"]
    assert summary["timing"]["evaluation"] > sum(row["words/seconds"] for row in measured.values())


def test_a_task_is_known_by_its_questions_and_by_how_they_are_asked(world, tmp_path):
    def keys(path=world.folder, **changes):
        config = schema.build(Evaluation, evaluation(dataclasses.replace(world, folder=path)))
        words = dataclasses.replace(config.tasks["words"], **changes)
        config = dataclasses.replace(config, tasks=config.tasks | {"words": words})
        questions = read_evaluation(config, load(world.folder / "tokenizer.json"))
        return TasksInTraining(questions, None, None, ()).keys

    shutil.copytree(world.folder, tmp_path / "copy")
    same = keys()
    assert keys(tmp_path / "copy") == same  # wherever they lie
    assert set(same) == {"words", "options", "samples", "choice", "bits_per_byte"}
    changed = keys(max_tokens=5)
    assert changed.pop("words") != same["words"] and changed.items() <= same.items()
    with (tmp_path / "copy" / "questions-heldout.jsonl").open("a") as file:
        file.write('{"prompt": "roof 99 red", "completion": "red"}\n')
    elsewhere = keys(tmp_path / "copy")
    assert all(elsewhere[name] != same[name] for name in ("words", "options", "choice"))


WORDS, OPTIONS = "tasks.words", "tasks.options"


@pytest.mark.parametrize(
    "changes, best, message",
    [
        (
            {f"{WORDS}.max_token": 3},
            None,
            r"evaluation.tasks.words.max_token: no such key; did you mean .*max_tokens\?",
        ),
        ({f"{WORDS}.split": "tset"}, None, r"there is no file .*questions-tset.jsonl"),
        ({f"{WORDS}.split": "train"}, None, r"words: 6 of 6 questions are trained on too: row"),
        ({f"{OPTIONS}.batch_size": 12}, None, "options.batch_size 12 does not divide over 8"),
        ({"mesh.fsdp": 2}, None, "evaluation.mesh: the model is asked on the run's own mesh"),
        ({}, "words/exact_macth", "no metric 'words/exact_macth'; did you mean words/exact_match"),
        ({}, "right", "no metric 'right'"),
        ({}, "heldout_loss", "keep_best by heldout_loss needs a held-out loss"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_anything_is_computed(
    world, tmp_path, changes, best, message
):
    content = evaluation(world)
    content = {"tasks": content["tasks"]}
    for path, value in changes.items():
        paths.set_at(content, paths.location(path), value, path)
    with pytest.raises((ValueError, OSError), match=message):
        saving = CheckpointConfig(keep_best=best is not None, best_metric=best or "heldout_loss")
        experiment = world.tuning(2, evaluation=content, checkpoint=saving)
        train(experiment, tmp_path / "run", session=Session(open_tasks))
    assert not (tmp_path / "run").exists()


def test_a_run_that_has_nothing_to_measure_or_nobody_who_asks_is_refused(world, tmp_path):
    with pytest.raises(ValueError, match="evaluate_every is 2, and there is nothing to measure"):
        train(world.tuning(2, evaluate_every=2), tmp_path / "run")
    with pytest.raises(ValueError, match="nothing here asks tasks: give session="):
        train(world.tuning(2, evaluation=evaluation(world)), tmp_path / "run")
    masked = world.experiment(2, data=world.data(objective=Masked(mask="\x01")))
    tasks = {"words": evaluation(world)["tasks"]["words"]}
    with pytest.raises(ValueError, match="tasks.words: it was trained to fill in masked tokens"):
        masked = dataclasses.replace(masked, evaluation={"tasks": tasks})
        train(masked, tmp_path / "run", session=Session(open_tasks))


SLOW = """
import pathlib, time


def score(answer, record):
    folder = pathlib.Path({folder!r})
    (folder / "asked").open("a").write("x")
    while (folder / "hold").exists() and (folder / "asked").stat().st_size > {count}:
        time.sleep(0.01)
    return sum(answer.encode()) / 1000
"""


@pytest.mark.heavy
def test_a_run_killed_in_the_middle_of_its_questions_ends_as_if_it_was_not(world, tmp_path):
    scorer = tmp_path / "slow.py"
    words = evaluation(world)["tasks"]["words"] | {"max_questions": 3}
    words |= {"scorers": [{"kind": "python", "path": f"{scorer}:score"}]}
    saving = CheckpointConfig(keep_last=1, keep_best=True, best_metric="words/score")
    experiment = world.tuning(
        3, evaluation={"tasks": {"words": words}}, evaluate_every=1, checkpoint=saving
    )
    # every answer is scored twice at the door, for its check and its metrics; three are then
    # answered after step 1, and step 2 stops at its second
    scorer.write_text(SLOW.format(folder=str(tmp_path), count=6 + 3 + 1))
    (tmp_path / "hold").touch()
    run, marks = tmp_path / "run", tmp_path / "asked"
    process = tiny_run.start(experiment, tmp_path, run)
    tiny_run.wait_for(process, lambda: marks.exists() and marks.stat().st_size > 10)
    process.kill()
    process.communicate()
    assert list(lines(run)) == [1]
    (tmp_path / "hold").unlink()
    best = [
        train(experiment, folder, session=Session(open_tasks)).best
        for folder in (run, tmp_path / "whole")
    ]
    assert best[0] == best[1] and tiny_run.content(run) == tiny_run.content(tmp_path / "whole")
    plain = [lines(folder) for folder in (run, tmp_path / "whole")]
    for rows in plain:
        for row in rows.values():
            del row["words/seconds"]
    assert plain[0] == plain[1]
