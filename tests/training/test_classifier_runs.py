"""Runs whose head says classes or a number: they learn, are asked, go on, and are refused."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from research import sharding
from research.adapters.merging import Merged
from research.checkpoints import runs
from research.data.config import DataConfig
from research.data.sources import JsonlConfig
from research.evaluation.breakdown import break_down
from research.evaluation.head_tasks import ClassificationTask, RegressionTask
from research.evaluation.in_training import open_tasks
from research.evaluation.multiple_choice import MultipleChoice
from research.evaluation.report import evaluate_run
from research.evaluation.tasks import Evaluation
from research.generation.responders import find_responders, find_stops
from research.losses import SquaredError
from research.methods import Classifier, Full, LoRA, Several
from research.objectives import Classification, Regression
from research.training.loop import train
from research.training.metrics import read_metrics
from research.training.session import Session
from tests.helpers import tiny_run

COLOURS = tiny_run.COLOURS
CLASSES = Classification(labels=COLOURS, template="Q: {text}")
LORA = LoRA(rank=4, alpha=4.0)
NUMBERS = Regression(template="Q: {text}")


@pytest.fixture(scope="module")
def numbers(tmp_path_factory):
    """Texts with the place of their colour as a number."""
    folder = tmp_path_factory.mktemp("numbers")
    for split, rows in (("train", range(6)), ("heldout", range(6, 9))):
        lines = [
            {"text": f"roof {n} {colour}", "label": place / 2}
            for n in rows
            for place, colour in enumerate(COLOURS)
        ]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    return JsonlConfig("numbers", str(folder / "{split}.jsonl"))


def tuning(world, steps, source=None, other=LORA, **changes):
    head = Classifier(1 if source else len(COLOURS))
    settings = {
        "data": world.data("questions", objective=CLASSES),
        "method": head if other is None else Several(of=(other, head)),
        "evaluate_split": "heldout",
        "schedule": dataclasses.replace(world.experiment(1).schedule, learning_rate=3e-2),
    }
    if source is not None:
        data = DataConfig((source,), sequence_length=32, batch_size=8, objective=NUMBERS)
        settings |= {"data": data, "loss": SquaredError()}
    return world.tuning(steps, **settings | changes)


@pytest.fixture(scope="module")
def tuned(world, tmp_path_factory):
    """A run that tells colours."""
    folder = tmp_path_factory.mktemp("tuned") / "run"
    train(tuning(world, 12), folder)
    return folder


@pytest.fixture(scope="module")
def measured(numbers, world, tmp_path_factory):
    """A run that says numbers."""
    folder = tmp_path_factory.mktemp("measured") / "run"
    train(tuning(world, 12, numbers), folder)
    return folder


def task_of(world):
    return ClassificationTask(world.questions().sources[0], split="heldout", batch_size=8)


def test_it_learns_and_a_row_holds_several_texts_with_a_target_each(world, tuned):
    lines = read_metrics(tuned / "metrics.jsonl")
    steps = [line for line in lines if "loss" in line]
    # scores of a normal start are near zero: a class is as likely as another
    np.testing.assert_allclose(steps[0]["loss"], np.log(len(COLOURS)), atol=0.1)
    assert steps[-1]["loss"] < steps[0]["loss"] / 3 and not any(s["skipped"] for s in steps)
    assert {"step", "heldout_loss"} == set(lines[-1]) and lines[-1]["heldout_loss"] < 1
    assert steps[0]["trained_tokens"] > 8  # rows of a batch


@pytest.mark.heavy
def test_a_stopped_run_goes_on_to_the_same_bits(world, tmp_path):
    method = {"other": Full(), "evaluate_split": None}
    train(tuning(world, 4, **method), tmp_path / "whole")
    train(tuning(world, 2, **method), tmp_path / "parts")
    train(tuning(world, 4, **method), tmp_path / "parts")  # longer: it begins as the other
    content = tiny_run.content(tmp_path / "whole")
    assert tiny_run.content(tmp_path / "parts") == content
    assert "model/head/site/classifier/kernel" in content


def by_hand(run, texts):
    """What the head says [N,C] of texts, a row each."""
    model = runs.load_model(run, *sharding.one_device())
    head, tail = run.experiment.data.objective.fixed(run.tokenizer)
    ids = [[*head, *run.tokenizer.encode(text), *tail] for text in texts]
    lengths = np.asarray(list(map(len, ids)))
    tokens = np.stack([np.pad(each, (0, lengths.max() - len(each))) for each in ids])
    places = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
    segments = (places < lengths[:, None]).astype(np.int32)
    hidden, _ = model.hidden(tokens, segments, places)
    last = np.asarray(hidden)[np.arange(len(ids)), lengths - 1]
    return last @ np.asarray(model.head.site["classifier"].kernel[...])


def test_classes_are_asked_as_in_training_and_broken_down(world, tuned):
    run, task = runs.open_run(tuned), task_of(world)
    (result,) = evaluate_run(run, Evaluation(tasks={"colour": task})).tasks.values()
    records = [question.record for question in task.read()]
    scores = by_hand(run, [record["prompt"] for record in records])
    best = np.argmax(scores, axis=1)
    assert [answer.answer for answer in result.answers] == [COLOURS[i] for i in best]
    rights = [COLOURS.index(record["completion"]) for record in records]
    assert result.metrics["right"].value == np.mean(best == rights) > 0.7
    shares = np.asarray(jax.nn.softmax(scores)).max(axis=1)
    # scores of two layers by two programs
    np.testing.assert_allclose([a.confidence for a in result.answers], shares, atol=1e-4)
    brier = np.mean((shares - (best == rights)) ** 2)
    np.testing.assert_allclose(result.calibration.brier, brier, atol=1e-4)  # as above
    confusion = break_down(result).confusion
    order = [COLOURS.index(label) for label in confusion.labels]
    counts = np.zeros((4, 4), int)
    np.add.at(counts, (rights, best), 1)
    np.testing.assert_array_equal(confusion.counts[:, : len(order)], counts[order][:, order])


@pytest.mark.heavy
def test_numbers_are_asked_as_in_training_and_their_errors_are_numpys(numbers, measured):
    run = runs.open_run(measured)
    task = RegressionTask(numbers, split="heldout", batch_size=8, tolerance=0.3)
    (result,) = evaluate_run(run, Evaluation(tasks={"place": task})).tasks.values()
    records = [question.record for question in task.read()]
    outputs = by_hand(run, [record["text"] for record in records])[:, 0]
    right = np.asarray([record["label"] for record in records])
    # scores of two layers by two programs
    np.testing.assert_allclose([a.numbers[0] for a in result.answers], outputs, atol=1e-4)
    within = np.mean(np.abs(outputs - right) <= 0.3)
    assert result.metrics["within"].value == within and result.calibration is None
    errors = result.errors
    # as above, and of a mean of 12
    np.testing.assert_allclose(errors.mean_squared, np.mean((outputs - right) ** 2), atol=1e-3)
    # as above
    np.testing.assert_allclose(errors.correlation, np.corrcoef(outputs, right)[0, 1], atol=1e-3)
    heldout = read_metrics(measured / "metrics.jsonl")[-1]
    # the mean over the same texts, in packed rows
    np.testing.assert_allclose(heldout["heldout_loss"], errors.mean_squared, rtol=1e-3)
    # as above
    np.testing.assert_allclose(heldout["heldout_absolute_error"], errors.mean_absolute, rtol=1e-3)


@pytest.mark.heavy
def test_a_run_asks_itself_as_it_trains(world, tmp_path):
    evaluation = {"tasks": {"colour": dataclasses.asdict(task_of(world)) | {"batch_size": 8}}}
    experiment = tuning(world, 4, None, evaluation=evaluation, evaluate_every=2)
    train(experiment, tmp_path / "run", session=Session(open_tasks))
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert len([line for line in lines if "colour/right" in line]) == 2


def test_what_says_no_tokens_writes_none_and_merges_into_no_base(world, tuned):
    run = runs.open_run(tuned)
    with pytest.raises(ValueError, match="says classes or a number by a head of its own"):
        find_stops(run, find_responders(run, {}, ()))
    with pytest.raises(ValueError, match="for which a base and a GGUF file have no place"):
        Merged(run)
    source = world.questions().sources[0]
    choice = MultipleChoice(source, labels=COLOURS, reference="completion", split="heldout")
    with pytest.raises(ValueError, match=r"colour: .* and no tokens: ask it with"):
        evaluate_run(run, Evaluation(tasks={"colour": choice}))
    with pytest.raises(ValueError, match="colour: .* was trained on classification, not regr"):
        evaluate_run(run, Evaluation(tasks={"colour": RegressionTask(source, split="heldout")}))
    with pytest.raises(ValueError, match="colour: .* has no head for classes or numbers"):
        evaluate_run(runs.open_run(world.base), Evaluation(tasks={"colour": task_of(world)}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": LoRA()}, 'asks for 4 outputs .*kind="classifier", outputs=4'),
        ({"method": Classifier(3)}, "has 3 outputs, .* asks for 4: set `outputs` to 4"),
        ({"loss": SquaredError()}, "is of numbers, and .* gives classes: set loss.kind to cross"),
    ],
    ids=["no head", "another size", "another loss"],
)
def test_method_loss_and_objective_that_do_not_fit_are_refused(world, changes, message):
    with pytest.raises(ValueError, match=message):
        tuning(world, 1, **changes)
    with pytest.raises(ValueError, match="says no tokens, and data.objective supervised asks"):
        tuning(world, 1, data=world.questions())
