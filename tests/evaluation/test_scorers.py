"""Scores of answers: what counts as right, against the scripts that the field compares with."""

import collections
import dataclasses
import json
import math
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.config import schema
from research.evaluation.scorers import SCORERS, AnyScorer, base, ifeval
from research.evaluation.scorers.exact_match import ExactMatch
from research.evaluation.scorers.ifeval import IfEval
from research.evaluation.scorers.json_schema import JsonSchema
from research.evaluation.scorers.numeric import Numeric
from research.evaluation.scorers.pattern import Pattern
from research.evaluation.scorers.python import Python
from research.evaluation.scorers.rouge_l import RougeL
from research.evaluation.scorers.token_f1 import TokenF1

WORDS = st.lists(st.sampled_from("the A cat sat. sat, on Mat 3 mat".split()), max_size=9)


SCALARS = st.none() | st.booleans() | st.integers() | st.text(max_size=3)
JSON = st.recursive(
    SCALARS,
    lambda inside: (
        st.lists(inside, max_size=3) | st.dictionaries(st.text(max_size=2), inside, max_size=3)
    ),
)


@dataclasses.dataclass(frozen=True)
class _Holder:
    scorer: AnyScorer


def value(scorer, answer, completion):
    (number,) = scorer.score(answer, {"completion": completion}).values.values()
    return number


def test_what_counts_in_an_exact_match_is_set():
    for comparison, answers in {
        "exact": ["The Cat"],
        "case": ["The Cat", " the  cat\n"],
        "squad": ["The Cat", " the  cat\n", "cat.", "a 'Cat'"],
    }.items():
        scorer = ExactMatch(comparison=comparison)
        for answer in ["The Cat", " the  cat\n", "cat.", "a 'Cat'", "dog", ""]:
            assert value(scorer, answer, "The Cat") == (answer in answers), (comparison, answer)
    assert value(ExactMatch(), "b", ["a", "B"]) == 1
    # answers are scored without their thoughts, and so is what is right
    assert value(ExactMatch(), "b", "<think>a or b?</think>\n\nB") == 1


def test_an_answer_is_found_by_its_pattern_and_missed_aloud():
    scorer = ExactMatch(extract=r"answer is (\w+)")
    assert value(scorer, "I think answer is no. So: the answer is yes!", "Yes") == 1
    scores = scorer.score("yes", {"completion": "yes"})
    assert scores.values == {"exact_match": 0.0} and "matches" in scores.unreadable
    for pattern, message in (("(", "no regular"), ("a", "one group"), ("(a)(b)", "one group")):
        with pytest.raises(ValueError, match=message):
            ExactMatch(extract=pattern)


@pytest.mark.parametrize(
    ("answer", "right", "is_right"),
    [
        ("so 3 + 4 = 7", "#### 7", 1),
        ("it costs $1,234.50.", "1234.5", 1),
        ("x2 and v1.2", "2", None),
        ("about -5", "5", 0),
        ("\u22125", "-5", 1),
        ("It is 7. Two of 3", "7", 0),
        ("1e3", "1000", 1),
        ("none", "7", None),
    ],
)
def test_the_last_number_of_an_answer_counts(answer, right, is_right):
    scores = Numeric().score(answer, {"completion": right})
    assert scores.values == {"numeric": float(bool(is_right))}
    assert bool(scores.unreadable) == (is_right is None)


def test_a_number_is_read_behind_its_mark_and_within_the_tolerance():
    marked = Numeric(after="####|answer is")
    assert value(marked, "answer is 5, that is 3 less than 8", "#### 5") == 1
    assert value(marked, "we get 5", "5") == 1  # without a mark, the last of all
    assert marked.score("answer is unknown", {"completion": "5"}).unreadable
    assert value(Numeric(tolerance=0.01), "99.5", 100) == 1 and value(Numeric(), "99.5", 100) == 0
    # beyond a float's digits and exponents
    assert value(Numeric(), "9007199254740993", 9007199254740992) == 0
    assert value(Numeric(tolerance=0.01), "1e400", "1e500") == 0
    assert value(Numeric(), "1.50", "1.5") == 1
    assert value(Numeric(), "1e99999999999999999999", 3) == 0
    with pytest.raises(ValueError, match="'completion' holds no number: 'many'"):
        Numeric().score("5", {"completion": "many"})


@given(words=WORDS, right=WORDS)
def test_words_in_common_and_in_order_are_counted_by_hand(words, right):
    plain = [base.as_in_squad(" ".join(part)).split() for part in (words, right)]
    common = sum(min(plain[0].count(w), plain[1].count(w)) for w in set(plain[0]))
    total = len(plain[0]) + len(plain[1])
    expected = 2 * common / total if all(plain) else float(plain[0] == plain[1])
    # one division each
    assert math.isclose(value(TokenF1(), " ".join(words), " ".join(right)), expected)
    order = value(RougeL(), " ".join(words), " ".join(right))
    bag = collections.Counter(" ".join(words).lower().replace(".", "").replace(",", "").split())
    bag &= collections.Counter(" ".join(right).lower().replace(".", "").replace(",", "").split())
    if words and right:  # no subsequence is longer than what they share
        assert order <= 2 * bag.total() / (len(words) + len(right)) + 1e-9
    assert value(RougeL(), " ".join(words), " ".join(words)) == bool(words)


def test_the_longest_common_subsequence_is_rouges():
    """Lin 2004, section 3.1: "police killed the gunman"; three words of four are in order."""
    right = "police killed the gunman"
    assert value(RougeL(), "police kill the gunman", right) == 0.75
    assert value(RougeL(), "the gunman kill police", right) == 0.5
    assert value(RougeL(), "x", ["y", "x z"]) == pytest.approx(2 / 3)  # one division


PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name"],
    "additionalProperties": False,
}


def test_json_is_parsed_validated_and_compared_field_by_field():
    scorer = JsonSchema(schema=PERSON)
    record = {"completion": '{"name": "A", "age": 3}'}
    metrics = ("json", "json/valid", "json/exact", "json/fields")

    def scores(answer):
        values = scorer.score(answer, record).values
        return [values[name] for name in metrics]

    assert scores('{"age": 3, "name": "A"}') == [1, 1, 1, 1]
    assert scores('{"name": "A", "age": 4}') == [1, 1, 0, 0.5]
    assert scores('{"name": "A", "age": true}') == [1, 0, 0, 0.5]
    assert scores('{"name": "A", "more": 1}') == [1, 0, 0, pytest.approx(1 / 3)]  # one division
    assert scores("[1]") == [1, 0, 0, 0]
    for broken in ('{"name": "A"', "", '{"a": NaN}', '{"name": "A", "name": "A"}', "[" * 100_000):
        assert scores(broken) == [0, 0, 0, 0] and scorer.score(broken, record).unreadable
    assert scorer.score("{}", record).values["json/field/name"] == 0
    assert scorer.score('{"name": "A"}', record).values["json/field/name"] == 1


def test_lists_fences_and_numbers_of_json_are_compared_as_set():
    record = {"completion": {"tags": ["a", {"b": 1}], "n": 1}}
    answer = '{"tags": [{"b": 1.0}, "a"], "n": 1.0}'
    assert JsonSchema().score(answer, record).values["json/exact"] == 1
    assert JsonSchema(ordered=True).score(answer, record).values["json/exact"] == 0
    fenced = f"```json\n{answer}\n```"
    assert JsonSchema().score(fenced, record).values["json"] == 0
    assert JsonSchema(fenced=True).score(fenced, record).values["json/exact"] == 1
    assert JsonSchema(reference=None).score("3", {}).values == {"json": 1.0}


@given(JSON)
def test_any_json_equals_itself_and_no_text_breaks_a_scorer(content):
    text = json.dumps(content)
    if content is not None:
        scores = JsonSchema().score(text, {"completion": text}).values
        assert scores["json/exact"] == scores["json/fields"] == 1
    for scorer in (ExactMatch(), TokenF1(), RougeL(), Pattern(".*")):
        assert 0 <= value(scorer, text, "a b") <= 1


def test_what_is_no_schema_pattern_or_reference_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="no JSON Schema: properties.a: 3 is not"):
        JsonSchema(schema={"properties": {"a": 3}})
    with pytest.raises(ValueError, match="pattern: no regular expression"):
        Pattern("(")
    for record in ({}, {"completion": None}, {"completion": []}, {"completion": [{}]}):
        with pytest.raises(ValueError, match="'completion' is no right answer"):
            ExactMatch().score("a", record)
    with pytest.raises(ValueError, match="path/to/file.py:function"):
        Python("mine.py")
    with pytest.raises(ValueError, match="kind: there is no 'rouge'"):
        schema.build(_Holder, {"scorer": {"kind": "rouge"}})


def test_a_function_of_ones_own_scores(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "def short(answer, record):\n    return {'': len(answer) < record['most'], 'n': 1}\n"
        "def broken(answer, record):\n    return 1 / 0\n"
        "def text(answer, record):\n    return 'a'\n"
    )
    scorer = Python(f"{file}:short", fields=("most",))
    assert scorer.score("abc", {"most": 4}).values == {"short": 1.0, "short/n": 1.0}
    assert scorer.reads == {"most"}
    for name, message in (
        ("broken", "mine.py, line 4: ZeroDivisionError"),
        ("text", "must return a number"),
        ("none", "has no function 'none'"),
    ):
        with pytest.raises(ValueError, match=message):
            Python(f"{file}:{name}").score("", {})


def test_ifeval_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "if_verifiable", None)
    ifeval._verifiers.cache_clear()
    record = {"instruction_id_list": ["startend:quotation"], "kwargs": [{}]}
    with pytest.raises(ValueError, match="needs the package if-verifiable .*tools/setup evaluate"):
        IfEval().score("a", record)


def test_every_scorer_is_known_by_its_kind():
    assert all(cls.kind == kind for kind, cls in SCORERS.items())
    holder = schema.build(_Holder, {"scorer": {"kind": "numeric", "tolerance": 0.1}})
    assert holder.scorer == Numeric(tolerance=0.1)
