"""Texts with a class or a number: what rows hold of them, and what is refused."""

import json

import numpy as np
import pytest
import tokenizers

from research.data import run_checks
from research.data.config import DataConfig
from research.data.pipeline import Pipeline
from research.data.sources import JsonlConfig
from research.inspection import rows as inspection
from research.inspection import summarize
from research.objectives import Classification, Regression
from research.text.conversation import from_messages
from research.text.tokenizer import Tokenizer
from tests.objectives import cases

CLASSES = Classification(labels=("red", "green", "blue"), template="Q: {text}\nA:")
NUMBERS = Regression(template="Q: {text}\nA:")
# two of them longer than a row
TEXTS = [f"{n} are" + " some words." * size for n, size in enumerate((1, 3, 2, 40, 5, 1, 4, 70))]


@pytest.fixture
def pipeline(tmp_path):
    """(records, objective, length) -> its pipeline."""

    def make(records, objective=CLASSES, length=48, tokenizer=None, **settings):
        text = "".join(json.dumps(record) + "\n" for record in records)
        (tmp_path / "made.jsonl").write_text(text)
        source = JsonlConfig("made", str(tmp_path / "made.jsonl"), **settings)
        config = DataConfig((source,), length, 4, objective)
        return Pipeline(config, tokenizer or cases.tokenizer(), tmp_path / "cache")

    return make


def labelled(labels, text="text", label="label"):
    return [{text: t, label: labels[n % len(labels)]} for n, t in enumerate(TEXTS)]


@pytest.mark.parametrize(
    ("records", "settings"),
    [
        (labelled(CLASSES.labels), {}),
        (labelled([0, 1, 2]), {}),
        (labelled(CLASSES.labels, "prompt", "completion"), {}),
        (labelled([0, 1, 2]), {"label_words": CLASSES.labels}),
    ],
    ids=["names", "numbers", "pairs", "words"],
)
def test_only_the_last_token_of_a_text_has_a_target_its_class(pipeline, records, settings):
    data, tokenizer = pipeline(records, **settings), cases.tokenizer()
    head, tail = tokenizer.encode("Q: "), tokenizer.encode("\nA:")
    classes, are_packed = {}, False
    for step in range(4):
        batch = data.batch(step)
        assert batch.values is None and set(np.unique(batch.weights)) == {0.0, 1.0}
        assert not batch.targets[batch.weights == 0].any()
        for tokens, segments, targets, weights in zip(
            batch.tokens, batch.segments, batch.targets, batch.weights, strict=True
        ):
            for segment in range(1, segments.max() + 1):
                here = segments == segment
                ids, place = tokens[here].tolist(), weights[here]
                assert place[-1] == 1 and place.sum() == 1  # also where the text was cut
                assert ids[-len(tail) :] == tail
                assert ids[: len(tokenizer.opening) + len(head)] == [*tokenizer.opening, *head]
                text = tokenizer.decode(ids[len(tokenizer.opening) + len(head) : -len(tail)])
                number = int(text.split()[0])
                classes[number] = int(targets[here][-1])
                assert text == TEXTS[number] or (TEXTS[number].startswith(text) and here.all())
        are_packed |= (batch.segments > 1).any()
    assert classes == {number: number % 3 for number in range(len(TEXTS))} and are_packed


def test_a_number_lies_beside_the_targets_and_may_be_text(pipeline):
    numbers, texts = (
        labelled([0.5, -2.0, 3.0]),
        labelled(["0.5", "-2", "3"], "prompt", "completion"),
    )
    for records in (numbers, texts):
        data = pipeline(records, NUMBERS)
        batch = data.batch(0)
        is_last = batch.weights > 0
        assert not batch.targets.any() and not batch.values[~is_last].any()
        assert set(batch.values[is_last].tolist()) <= {0.5, -2.0, 3.0}
        assert "numbers from -2 to 3" in data.statistics(1)["made"].format


def test_a_text_is_asked_as_it_is_trained_on_cut_at_the_side_that_is_chosen():
    tokenizer = cases.tokenizer()
    text = "".join(f"{n} some words. " for n in range(60))
    conversation = from_messages([{"role": "user", "content": text}])
    for cut, part in (("right", "0 some"), ("left", "59 some words. ")):
        objective = Classification(labels=("a", "b"), template="Q: {text}\nA:", cut=cut)
        ids, is_cut = objective.prompt_ids(tokenizer, conversation, 40)
        assert is_cut and len(ids) == 40
        words = tokenizer.decode(ids)
        assert words.endswith("\nA:") and part in words
    short = from_messages([{"role": "user", "content": "some"}])
    assert not objective.prompt_ids(tokenizer, short, 40)[1]


def test_inspection_shows_a_class_by_its_name(pipeline):
    data = pipeline(labelled(CLASSES.labels))
    segments = [s for row in inspection.read_rows(data, 0) for s in row.segments]
    for segment in segments:
        assert segment.label == CLASSES.labels[segment.row % 3]
        *_, last = inspection.token_spans(segment, cases.tokenizer())
        assert last.target_text == segment.label and segment.target_count == 1
    statistics, _ = summarize._completions(data.rows["made"].examples, cases.tokenizer())
    counts = {label.text: label.count for label in statistics.labels}
    assert counts == {"red": 3, "green": 3, "blue": 2}


@pytest.mark.parametrize(
    ("records", "objective", "message"),
    [
        (labelled(["red", "gren"]), CLASSES, r"'gren' is none of .*did you mean green.*jsonl"),
        (labelled([0, 3]), CLASSES, r"3 is no class: there are 3 `labels`, counted from 0"),
        (labelled([0, 0.5]), CLASSES, r"several formats"),
        (labelled([True, False]), CLASSES, r"a class is a name or a number from 0, not True"),
        (labelled([0, None]), CLASSES, r"jsonl:2 is 'text'"),
        ([{"text": "a"}, {"text": "b"}], CLASSES, r"row 0: there is no label.*made.jsonl.*1"),
        (labelled([1.5, float("nan")]), NUMBERS, r"nan is no finite number"),
        (labelled([1.5, 1e39]), NUMBERS, r"1e\+39 is no finite number"),
        (labelled(["1", "two"], "prompt", "completion"), NUMBERS, r"'two' is no finite number"),
        ([{"label": 1}, {"label": 2}], CLASSES, r"there is no text, only \['label'\]"),
    ],
    ids=[
        *("unknown", "out of range", "mixed", "bool", "null", "missing", "nan", "infinite"),
        *("words", "no text"),
    ],
)
def test_a_label_that_says_nothing_is_refused_with_its_place(pipeline, records, objective, message):
    with pytest.raises(ValueError, match=message):
        pipeline(records, objective)


def test_labels_that_are_all_alike_are_refused_over_all_that_is_trained_on(pipeline):
    same = pipeline(labelled(["red"]))
    with pytest.raises(ValueError, match="All 8 examples have the label 'red': there is nothing"):
        run_checks.check_labels([rows.examples for rows in same.rows.values()])
    assert "3 classes (no example of green, blue)" in same.statistics(1)["made"].format
    other = pipeline(labelled(["blue"]))
    run_checks.check_labels([*(r.examples for p in (same, other) for r in p.rows.values())])


def test_settings_that_leave_nothing_to_say_or_to_read_are_refused(pipeline):
    for labels in ((), ("a",), ("a", "a")):
        with pytest.raises(ValueError, match="two different classes at least"):
            Classification(labels=labels)
    with pytest.raises(ValueError, match=r"must hold \{text\} exactly once"):
        Regression(template="{prompt}")
    with pytest.raises(ValueError, match="A window of 6 tokens has no room for a text"):
        pipeline(labelled(CLASSES.labels), CLASSES, length=6)
    backend = tokenizers.Tokenizer.from_str(cases.tokenizer().to_json())
    empty = [{"text": "some", "label": 0}, {"text": "", "label": 1}]
    with pytest.raises(ValueError, match="row 1: an empty text has no last token"):
        pipeline(
            empty, Classification(labels=("a", "b")), tokenizer=Tokenizer(backend, opens=False)
        )
