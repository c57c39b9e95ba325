"""A result in its parts: each part's numbers are those of its answers alone."""

import dataclasses
import json

import numpy as np
import pytest

from research.evaluation import breakdown, questions
from research.evaluation.calibration import calibrate
from research.evaluation.results import Answer, TaskResult
from research.reports.statistics import proportion_interval
from research.text.conversation import from_messages


def answer(number, right, **settings):
    return Answer(f"q{number}", "x", str(number), {"right": float(right)}, **settings)


def test_slices_by_a_field_are_their_own_answers_the_most_frequent_first():
    fields = ["law", "law", "art", "law", "art", "sea"]
    answers = [answer(n, n % 2, fields={"subject": each}) for n, each in enumerate(fields)]
    slices = breakdown.break_down(TaskResult(answers, 0, 1.0)).slices["subject"]
    assert [(each.name, each.n) for each in slices] == [("law", 3), ("art", 2), ("sea", 1)]
    assert slices[0].metrics["right"] == proportion_interval(np.asarray([0, 1, 1]))
    assert slices[2].metrics["right"] == 1.0  # one answer has no interval
    many = [answer(n, 1, fields={"subject": str(n // 2)}) for n in range(60)]
    slices = breakdown.break_down(TaskResult(many, 0, 1.0)).slices["subject"]
    assert len(slices) == 21 and (slices[-1].name, slices[-1].n) == ("10 others", 20)


def test_bins_of_length_hold_equally_many_and_prompts_of_one_length_together():
    lengths = [*range(10, 30), *([50] * 20)]
    answers = [answer(n, n < 20, prompt_tokens=each) for n, each in enumerate(lengths)]
    bins = breakdown.by_length(answers)
    assert [(each.name, each.n) for each in bins] == [
        ("10 to 17", 8),
        ("18 to 25", 8),
        ("26 to 50", 24),
    ]
    assert bins[2].metrics["right"] == proportion_interval(np.asarray([1] * 4 + [0] * 20))
    assert not breakdown.by_length(answers[20:]) and not breakdown.by_length(answers[:15])


def test_few_groups_are_slices_of_their_own_and_many_are_not():
    def groups(count):
        answers = [answer(n, n % 2, group=str(n % count)) for n in range(60)]
        return breakdown.break_down(TaskResult(answers, 0, 1.0)).slices.get("group")

    assert [each.n for each in groups(3)] == [20] * 3 and groups(30) is None
    assert groups(3)[0].metrics["right"] == proportion_interval(np.arange(20) % 2)


def test_what_is_confused_with_what_is_counted():
    right = ["red", "red", "red", "blue", "blue", "blue"]
    texts = ["red", " Red\n", "blue", "blue", "green", "red"]
    pairs = zip(right, texts, strict=True)
    answers = [
        dataclasses.replace(answer(n, 0, reference=reference), answer=text)
        for n, (reference, text) in enumerate(pairs)
    ]
    confusion = breakdown.confuse(answers)
    assert list(confusion.labels) == ["blue", "red"]
    assert list(confusion.answers) == ["blue", "red", breakdown.OTHER]
    assert confusion.counts.tolist() == [[1, 1, 1], [1, 2, 0]]
    # options of each question's own, by their places: answer, then what is right
    places = [(0, 0), (2, 0), (1, 1)]
    answers = [answer(n, 0, reference=f"r{n}", places=each) for n, each in enumerate(places)]
    confusion = breakdown.confuse(answers)
    assert list(confusion.labels) == ["A", "B", "C"]
    assert confusion.counts.tolist() == [[1, 0, 1], [0, 1, 0], [0, 0, 0]]
    assert breakdown.confuse([answer(n, 0, reference=f"r{n}") for n in range(9)]) is None


def test_bins_of_sureness_give_the_calibration_error():
    random = np.random.default_rng(0)
    sure, right = random.uniform(size=200), random.integers(0, 2, 200)
    pairs = enumerate(zip(sure, right, strict=True))
    answers = [answer(n, r, confidence=float(c)) for n, (c, r) in pairs]
    bins = breakdown.sureness(TaskResult(answers, 0, 1.0))
    error = sum(each.right.n * abs(each.confidence - each.right.value) for each in bins) / 200
    # sums of 200 terms in another order
    assert error == pytest.approx(calibrate(sure, right).error, rel=1e-12)
    assert all(each.low < each.confidence <= each.high for each in bins)


def test_all_of_it_is_written_as_json():
    answers = [
        answer(n, n % 2, fields={"a": "b"}, places=(0, n % 2), prompt_tokens=n, confidence=0.6)
        for n in range(20)
    ]
    content = breakdown.break_down(TaskResult(answers, 0, 1.0)).to_dict()
    assert json.loads(json.dumps(content)) == content
    assert content["slices"]["a"][0]["metrics"]["right"]["n"] == 20
    assert content["slices"].keys() == {"a", "prompt tokens"}
    assert content["confusion"]["counts"] == [[10, 0], [10, 0]]


def test_a_record_without_the_field_of_a_breakdown_is_refused():
    talk = from_messages([{"role": "user", "content": "a"}])
    rows = [questions.Question(n, talk, record) for n, record in enumerate(({"a": 1}, {"b": 1}))]
    assert questions.read_fields(rows[:1], ("a",)) == [{"a": "1"}]
    with pytest.raises(ValueError, match="row 1: results are broken down by 'a', .* fields: b"):
        questions.read_fields(rows, ("a",))
