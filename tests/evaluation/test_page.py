"""The page of an evaluation: what a model writes is only read, and equal results equal bytes."""

import dataclasses
import json
import re

import pytest

from research.commands import evaluate
from research.config import schema
from research.evaluation import comparison, examples, page
from research.evaluation.results import Answer, Cost, TaskResult
from research.evaluation.tasks import Evaluation
from tests.evaluation.test_answer_cache import options, words
from tests.helpers.html_page import Page
from tests.helpers.tiny_run import world

BAD = "<script>alert(1)</script></pre><img src=x onerror=alert(2)>\u202e"


def result(rights, text=BAD, **settings):
    answers = [
        Answer(
            f"question {n} {BAD}",
            f"{text} {n}",
            str(n),
            {"right": float(right)},
            reference=BAD,
            unreadable=BAD if n == 1 else "",
            is_cut=n == 2,
            passages=[BAD],
            fields={BAD: BAD},
            confidence=0.55,
            places=(n % 2, 0),
            prompt_tokens=n,
        )
        for n, right in enumerate(rights)
    ]
    cost = Cost(1e9, 538e6, 5e6)
    return TaskResult(answers, 0, 1.5, settings={"kind": BAD} | settings, cost=cost)


def text():
    """Of two documents of a source."""
    answers = [
        Answer(BAD, "", str(n), {BAD: n, f"{BAD}/nats": n}, sizes={BAD: 200, f"{BAD}/nats": 150})
        for n in (1.0, 3.0)
    ]
    return TaskResult(answers, 0, 1.5, settings={"kind": "text"})


def write(tmp_path, name="a.html"):
    first = {BAD: result([1, 0] * 10), "text": text()}
    second = {BAD: result([0, 0, 1, 1] * 5, "other")}
    against = (BAD, second, comparison.compare(first, second))
    page.write(
        tmp_path / name,
        BAD,
        first,
        against=against,
        otherwise=[BAD],
        provenance={"run": BAD},
    )
    return (tmp_path / name).read_text()


def test_whatever_a_model_writes_is_only_read(tmp_path):
    markup = write(tmp_path)
    parts = Page(markup)
    assert "script" not in parts.tags and "img" not in parts.tags
    assert not [name for name, _ in parts.attributes if name.startswith("on")]
    # it asks nobody for anything: a plot refers to itself
    assert {link for link in parts.links if not link.startswith("#")} == {"data:,"}
    assert "\u202e" not in "".join(re.findall(r"<article>.*?</article>", markup, re.DOTALL))
    assert parts.text.count("<script>alert(1)</script>") > 20  # it is there to read
    assert "2.000" in parts.text and "7.39" in parts.text  # bits per byte, and e to the 2 nats


def test_the_same_results_are_the_same_bytes(tmp_path):
    assert write(tmp_path) == write(tmp_path, "b.html")


def test_failures_are_counted_and_some_of_them_shown():
    cards = "".join(examples.failures(result([0] * 40 + [1] * 60, "text")))
    headings = re.findall(r"<h3>(.*?)</h3>\n<p class=caption>(.*?)</p>", cards)
    assert headings == [
        ("Nothing could be read", "1 of 100."),
        ("Cut at their longest", "1 of 100."),
        ("Wrong by right", "40 of 100, 2 of which stand above; 8 of the others, drawn at random."),
    ]
    assert cards.count("<article>") == 8 + 1 + 1
    all_above = examples.failures(result([0, 1, 1], "text"))
    (one,) = [card for card in all_above if "Wrong by" in card]
    assert "1 of 3." in one and one.count("<article>") == 1
    long = dataclasses.replace(result([0, 1]).answers[0], answer="a" * 5000)
    (card,) = examples.failures(TaskResult([long, long], 0, 1.0))[:1]
    assert "a… (5,000 characters)" in card and "a" * 4001 not in card
    # scores that are not 0 and 1: the lowest quarter
    answers = [dataclasses.replace(long, scores={"f1": n / 100}) for n in range(100)]
    assert "up to 0.24" in examples.failures(TaskResult(answers, 0, 1.0))[0]


def test_questions_on_which_two_differ_are_those_of_other_scores():
    one, other = result([1, 1, 0, 0, 1], "mine"), result([1, 0, 1, 0, 0], "theirs")
    section = examples.differing("t", one, "B", other)
    assert "This run is better by right" in section and "2 of 5." in section
    assert "B is better by right" in section and "1 of 5." in section
    assert section.count("<article>") == 3
    same = examples.differing("t", one, "B", one)
    assert "Both have the same right everywhere" in same


@pytest.mark.parametrize("kind", [words, options])
def test_the_command_writes_it_with_the_numbers_of_the_json(tmp_path_factory, tmp_path, kind):
    place = world(tmp_path_factory.getbasetemp())
    config = tmp_path / "config.py"
    task = kind(place, breakdown=("completion",), max_questions=12)
    config.write_text(
        f"def get_config():\n    return {schema.to_dict(Evaluation(tasks={'a': task}))!r}\n"
    )
    line = ["--config", str(config), "--run", str(place.base)]
    paths = [str(tmp_path / name) for name in ("a.html", "a.json", "b.html", "b.json")]
    evaluate.main([*line, "--page", paths[0], "--out", paths[1]])
    evaluate.main([*line, "--page", paths[2], "--out", paths[3]])
    pages = [(tmp_path / name).read_text() for name in ("a.html", "b.html")]
    assert pages[0] == pages[1]
    content = json.loads((tmp_path / "a.json").read_text())["tasks"]["a"]
    text = Page(pages[0]).text
    slices = content["breakdown"]["slices"]["completion"]
    assert {each["name"] for each in slices} <= {"red", "green", "blue", "white"}
    assert sum(each["n"] for each in slices) == 12
    for each in slices:
        (value,) = {m["value"] for name, m in each["metrics"].items() if "/" not in name} or {0}
        assert f"{100 * value:.1f}" in text
    assert sum(map(sum, content["breakdown"]["confusion"]["counts"])) == 12
    assert ("How sure" in text) == (kind is options)
    for part in ("Metrics", "By completion", "What is taken for what", "Wrong by", "Cost"):
        assert part in text
