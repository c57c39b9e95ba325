"""Bad questions of a test: those that the run was tuned on, and none at all."""

import dataclasses
import json

import pytest

from research.checkpoints import runs
from research.data.sources import JsonlConfig
from research.evaluation import breakdown
from research.evaluation.report import evaluate_run
from research.evaluation.results import Answer
from research.evaluation.tasks import ChoiceTask, Evaluation, TextTask
from research.evaluation.training_overlap import hash_questions, read_training_questions
from tests.evaluation.test_answer_cache import ASK, options
from tests.helpers.tiny_run import world


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return world(tmp_path_factory.getbasetemp())


def source(tmp_path, records):
    (tmp_path / "a-test.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records))
    return JsonlConfig("a", str(tmp_path / "a-{split}.jsonl"))


def tuned(place, **settings):
    """The base, as if it had been tuned on the questions."""
    return dataclasses.replace(
        runs.open_run(place.base), experiment=place.tuning(1, **settings), base=None
    )


def test_questions_that_a_run_was_tuned_on_are_counted_and_apart(place, tmp_path):
    rows = [
        {"prompt": "ROOF  1 green", "completion": "red"},  # row 5, written and answered otherwise
        {"prompt": "roof 999 green", "completion": "green"},
        {"prompt": "roof 998 red", "completion": "red"},
    ]
    task = dataclasses.replace(options(place), source=source(tmp_path, rows), split="test")
    report = evaluate_run(tuned(place), Evaluation(tasks={"a": task}), looks_for_training=True)
    assert report.training_overlap == [
        "a: 1 of 3 questions stand in what the run was tuned on (row 0 is row 5 of questions:train)"
    ]
    slices = breakdown.break_down(report.tasks["a"]).slices["in training"]
    assert [(each.name, each.n) for each in slices] == [("no", 2), ("yes", 1)]
    assert report.to_dict()["training_overlap"] == report.training_overlap
    # as a conversation
    talks = [
        {"messages": [{"role": r, "content": c} for r, c in (("user", ask), ("assistant", "red"))]}
        for ask in ("roof 0 red", "new")
    ]
    task = dataclasses.replace(task, source=source(tmp_path, talks))
    is_trained, _ = read_training_questions(tuned(place)).find(task.read())
    assert is_trained.tolist() == [True, False]
    # plain text asks nothing, and its own questions are nobody's
    training = read_training_questions(runs.open_run(place.base))
    assert not training.hashes and not training.find(task.read())[0].any()


def test_every_answer_of_a_conversation_has_a_question():
    """All of them are trained on, and a test may ask any."""

    def talk(*contents):
        roles = ("user", "assistant")
        return [{"role": roles[n % 2], "content": each} for n, each in enumerate(contents)]

    def question_hash(record):
        return hash_questions(record)[-1]

    trained = hash_questions({"messages": talk("red?", "yes", "blue?", "no")})
    assert question_hash({"prompt": " RED? "}) == trained[0]
    assert question_hash({"messages": talk("red?", "yes", "blue?")}) == trained[1]
    assert question_hash({"prompt": "blue?"}) not in trained  # without what was said before
    # an answer that calls a tool is an answer
    call = [talk("red?")[0], {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}]
    assert hash_questions({"messages": call}) == trained[:1]
    assert hash_questions({"label": 1}) == []


def test_training_data_that_is_gone_is_said(place, tmp_path):
    missing = place.data("gone", objective=ASK)
    training = read_training_questions(tuned(place, data=missing))
    assert not training.hashes and training.unread[0].startswith("gone:train (")
    evaluation = Evaluation(tasks={"a": options(place)})
    report = evaluate_run(tuned(place, data=missing), evaluation, looks_for_training=True)
    (line,) = report.training_overlap
    assert line.startswith("whether questions stand in gone:train (") and "not known" in line


def test_a_test_without_questions_is_refused(place, tmp_path):
    run, empty = runs.open_run(place.base), source(tmp_path, [])
    (tmp_path / "a-train.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 2)
    task = dataclasses.replace(options(place), source=empty, split="test")
    choice, text = ChoiceTask(empty, ASK), TextTask((empty,), split="test")
    for evaluation in (Evaluation(tasks={"t": task}), Evaluation(choice=choice)):
        with pytest.raises(ValueError, match="a:test has 0 questions"):
            evaluate_run(run, evaluation)
    with pytest.raises(ValueError, match="'a:test' is empty"):
        evaluate_run(run, Evaluation(text=text))


def test_labels_that_are_never_answered_are_named():
    answers = [
        Answer("q", text, "0", {"right": 0.0}, reference=right)
        for right in ("a", "b", "c")
        for text in ("a", "A ", "no")
    ]
    assert breakdown.never_given(answers) == ["b", "c"]
    assert breakdown.never_given(answers[:2]) == []  # one label is no choice
