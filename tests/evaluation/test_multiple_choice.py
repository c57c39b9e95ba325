"""Options of a question: which is right, what each is worth, and how sure a model is."""

import dataclasses
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss

from research import sharding
from research.checkpoints import runs
from research.commands import evaluate
from research.config import schema
from research.data.sources import JsonlConfig
from research.evaluation import comparison, scoring
from research.evaluation.calibration import calibrate, confidence
from research.evaluation.multiple_choice import MultipleChoice
from research.evaluation.report import evaluate_run
from research.evaluation.results import Answer
from research.evaluation.tasks import Evaluation
from research.objectives import Supervised
from research.sharding import MeshConfig
from research.training.heldout_loss import make_score
from tests.helpers import rounding, tiny
from tests.helpers.tiny_run import world

ASK = Supervised(template="Q: {prompt}\nA: ", answer_tokens=8)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return world(tmp_path_factory.getbasetemp())


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return JsonlConfig("a", str(path), fields={"prompt": "question"})


def records(count=5):
    """Questions of several lengths, with two to four options."""
    options = ["red", "blue and green", "a", "yellow or so"]
    return [
        {"question": "what colour " * (number + 1), "choices": options[: 2 + number % 3]}
        | {"answer": number % 2}
        for number in range(count)
    ]


def test_options_of_each_question_are_scored_as_alone():
    rows = sharding.batch_sharding(MeshConfig().make(), sharding.RULES)
    score = make_score(tiny.shaken(tiny.model(), size=0.2), rows)
    random = np.random.default_rng(1)
    # of two buckets, the second with a part of a batch
    lengths = [5, 80, 3, 9, 70, 2, 4, 8, 6, 7, 90]
    questions = [random.integers(1, 90, length).tolist() for length in lengths]
    options = [[[3, 4], [7], [9, 9, 1]][: 1 + number % 3] for number in range(len(questions))]
    scores = scoring.score_options(score, questions, options, 8)
    for question, own, nats in zip(questions, options, scores, strict=True):
        (expected,) = scoring.score_options(score, [question], [own], 8)
        rounding.assert_close(
            nats, expected, roundings=rounding.forward_roundings(tiny.CONFIG, 128)
        )
    with pytest.raises(ValueError, match="no option may be empty"):
        scoring.score_options(score, [[1]], [[[2], []]], 8)


def test_metrics_are_the_likeliest_by_each_measure(place, tmp_path):
    source = write(tmp_path / "a.jsonl", records())
    task = MultipleChoice(
        source, split="train", objective=ASK, batch_size=8, delimiter=" ", unconditional="N/A"
    )
    run = runs.open_run(place.base)
    result = evaluate_run(run, Evaluation(tasks={"colours": task})).tasks["colours"]
    assert set(result.metrics) == {"right", "right/tokens", "right/bytes", "right/unconditional"}
    encode = run.tokenizer.encode
    model = runs.load_model(run, MeshConfig().make(), sharding.RULES)
    score = make_score(model, sharding.batch_sharding(MeshConfig().make(), sharding.RULES))
    for record, answer in zip(records(), result.answers, strict=True):
        options = [encode(" " + option) for option in record["choices"]]
        prompts = [
            ASK.encode_prompt(run.tokenizer, text, 1024)[0] for text in (record["question"], "N/A")
        ]
        nats, bare = scoring.score_options(score, prompts, [options] * len(prompts), 8)
        measures = {
            "right": nats,
            "right/tokens": nats / [len(option) for option in options],
            "right/bytes": nats / [len(option) for option in record["choices"]],
            "right/unconditional": nats - bare,
        }
        expected = {name: np.argmax(each) == record["answer"] for name, each in measures.items()}
        assert answer.scores == expected
        assert answer.answer == record["choices"][np.argmax(nats)]
        assert answer.reference == record["choices"][record["answer"]]
        # float32 sums of a few tokens in rows of another length
        assert answer.confidence == pytest.approx(np.exp(nats).max() / np.exp(nats).sum(), rel=1e-3)


def test_letters_stand_below_the_question_and_are_the_answer(place, tmp_path):
    source = write(tmp_path / "a.jsonl", records())
    task = MultipleChoice(source, split="train", objective=ASK, letters=True, with_end=True)
    run = runs.open_run(place.base)
    result = evaluate_run(run, Evaluation(tasks={"colours": task})).tasks["colours"]
    assert result.answers[1].question.endswith("colour \nA. red\nB. blue and green\nC. a")
    assert set(result.metrics) == {"right"}
    # a letter and the end of each option, the question but for its last token
    prompt_tokens = sum(answer.prompt_tokens - 1 for answer in result.answers)
    assert result.tokens_read == prompt_tokens + 2 * sum(
        len(record["choices"]) for record in records()
    )


@pytest.mark.parametrize(
    ("settings", "record", "right"),
    [
        ({}, {"choices": ["x", "y"], "answer": 1}, "y"),
        ({}, {"choices": ["x", "y"], "answer": "1"}, "y"),
        ({}, {"choices": ["x", "y"], "answer": "B"}, "y"),
        ({"reference_kind": "text"}, {"choices": ["B", "A"], "answer": "A"}, "A"),
        ({"reference_kind": "letter"}, {"choices": ["B", "A"], "answer": "A"}, "B"),
        ({}, {"choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answer": "1"}, "x"),
        ({}, {"choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answer": 1}, "x"),
        ({}, {"choices": {"text": ["x", "y"], "label": [1, 2]}, "answer": "2"}, "y"),
        ({}, {"choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answer": 1}, "y"),
        ({}, {"choices": {"text": ["x", "y"], "label": None}, "answer": 1}, "y"),
        ({"labels": ("yes", "no"), "reference": "said"}, {"said": "no"}, "no"),
        ({"options": "ways"}, {"ways": ["10", "1"], "answer": "1"}, "1"),
    ],
)
def test_the_right_option_is_found_by_text_label_letter_or_number(settings, record, right):
    options, number = MultipleChoice(JsonlConfig("a", "a"), **settings).read_options(record)
    assert options[number] == right


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"choices": ["x"], "answer": 0}, "'choices' are no options"),
        ({"choices": ["x", ""], "answer": 0}, "'choices' are no options"),
        ({"choice": ["x", "y"], "answer": 0}, "fields: answer, choice"),
        ({"choices": ["x", "x"], "answer": 0}, "two of its options are alike"),
        ({"choices": ["x", "y"], "answer": 2}, "'answer' is none of its 2 options"),
        ({"choices": ["x", "y"], "answer": -1}, "'answer' is none of its 2 options"),
        ({"choices": ["x", "y"], "answer": True}, "'answer' is none of its 2 options"),
        ({"choices": ["x", "y"], "answer": "z"}, "'answer' is none of its 2 options"),
        ({"choices": ["x", "y"]}, "but None"),
        ({"choices": ["O", "A", "B"], "answer": "A"}, "by text 'A' and by letter 'O': say which"),
        ({"choices": ["1", "2", "3"], "answer": 1}, "by text '1' and by number '2': say which"),
        ({"choices": {"text": ["A", "B"], "label": ["B", "A"]}, "answer": "A"}, "by label 'B'"),
        ({"choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answer": 0}, "none of its 2"),
        ({"choices": {"text": ["x", "y"], "label": ["A"]}, "answer": "A"}, "2 options and 1 label"),
        ({"choices": {"text": ["x", "y"], "label": [1, "1"]}, "answer": 1}, "labels are alike"),
        ({"choices": {"text": ["x", "y"], "label": "AB"}, "answer": "A"}, "labels are no list"),
        ({"choices": {"text": ["x", None], "label": [1, 2]}, "answer": 1}, "are no options"),
        ({"choices": ["x", "\ud800"], "answer": 0}, "is no Unicode text"),
    ],
)
def test_records_without_options_or_a_right_one_are_refused_by_row(tmp_path, record, message):
    source = write(tmp_path / "a.jsonl", [*records(1), {"question": "q"} | record])
    with pytest.raises(ValueError, match=f"row 1: .*{message}|{message}"):
        MultipleChoice(source, split="train").read()


def test_an_option_that_is_longer_than_a_row_is_told_before_anything_is_computed(place, tmp_path):
    rows = [*records(1), {"question": "q", "choices": ["x", "red " * 99], "answer": 0}]
    source = write(tmp_path / "a.jsonl", rows)
    task = MultipleChoice(source, split="train", sequence_length=64)
    with pytest.raises(ValueError, match="row 1: an option of .* tokens, and a row has 64"):
        evaluate_run(runs.open_run(place.base), Evaluation(tasks={"colours": task}))


def test_a_record_that_cannot_be_asked_is_told_with_its_task(place, tmp_path):
    source = write(tmp_path / "a.jsonl", records(2))
    task = MultipleChoice(source, split="train", reference_kind="label")
    message = "colours: row 0: .* by label, of which they have none"
    with pytest.raises(ValueError, match=message):
        evaluate_run(runs.open_run(place.base), Evaluation(tasks={"colours": task}))


def test_settings_that_exclude_each_other_are_refused():
    source = JsonlConfig("a", "a")
    with pytest.raises(ValueError, match="set one of the two"):
        MultipleChoice(source, letters=True, unconditional="")
    with pytest.raises(ValueError, match="two different ones"):
        MultipleChoice(source, labels=("a", "a"))


def test_a_config_of_options_runs_from_the_command(place, tmp_path, capsys):
    source = dataclasses.replace(write(tmp_path / "a.jsonl", records(8)), split="train")
    task = MultipleChoice(source, split="train", objective=ASK)
    content = schema.to_dict(Evaluation(tasks={"colours": task}))
    (tmp_path / "config.py").write_text(f"def get_config():\n    return {content!r}\n")
    line = ["--config", str(tmp_path / "config.py"), "--run", str(place.base)]
    evaluate.main([*line, "--out", str(tmp_path / "out.json")])
    printed = capsys.readouterr().out
    assert "colours, right/bytes: " in printed and "calibration error" in printed
    content = json.loads((tmp_path / "out.json").read_text())["tasks"]["colours"]
    answers = content["answers"]
    expected = calibrate(
        [answer["confidence"] for answer in answers],
        [answer["scores"]["right"] for answer in answers],
    )
    assert content["calibration"] == dataclasses.asdict(expected)
    (tmp_path / "other.json").write_text(json.dumps({"tasks": {"shapes": content}}))
    with pytest.raises(SystemExit, match="no task in common: colours and shapes"):
        evaluate.main([*line, "--against", str(tmp_path / "other.json")])
    assert "colours, right/bytes: " in capsys.readouterr().out  # what was asked for is not lost


@pytest.mark.parametrize(
    "change",
    [
        {"scores": {"right": "1"}},
        {"scores": {"right": None}},  # as numbers that are not finite are written
        {"scores": {"right": math.nan}},
        {"scores": [1]},
        {"digest": 5},
        {"group": ["a"]},
        {"asked": 1},  # of another version
    ],
)
def test_answers_that_are_none_are_told_before_anything_is_asked(tmp_path, change):
    answer = dataclasses.asdict(Answer("q", "a", "d", {"right": 1.0}))
    task = {"answers": [answer, answer], "truncated": 0, "seconds": 1.0, "settings": {}}
    (tmp_path / "a.json").write_text(json.dumps({"tasks": {"t": task}}))
    assert len(comparison.read_results(tmp_path / "a.json")["t"].answers) == 2
    task["answers"] = [answer, answer | change]
    (tmp_path / "a.json").write_text(json.dumps({"tasks": {"t": task}}))
    with pytest.raises(ValueError, match=r"a\.json: no answers to compare with"):
        comparison.read_results(tmp_path / "a.json")


def test_calibration_by_hand():
    calibration = calibrate(np.array([0.9, 0.9, 0.6, 0.5]), np.array([1, 0, 1, 0]), bins=2)
    # above a half: mean 0.8, two of three right; up to a half: 0.5, none right
    assert calibration.error == pytest.approx(3 / 4 * abs(0.8 - 2 / 3) + 1 / 4 * 0.5)
    assert calibration.surest_half == 0.5
    with pytest.raises(ValueError, match="probabilities"):
        calibrate(np.array([1.5]), np.array([1]))
    assert confidence(np.log([0.2, 0.6])) == pytest.approx(0.75)


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1))
def test_calibration_is_that_of_scikit_learn_and_never_out_of_bounds(rows):
    confidences, right = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
    calibration = calibrate(confidences, right)
    assert calibration.brier == pytest.approx(brier_score_loss(right, confidences, pos_label=True))
    assert 0 <= calibration.error <= 1 and 0 <= calibration.surest_half <= 1
    sure = calibrate(right.astype(float), right)
    assert (sure.error, sure.brier) == (0, 0)
