"""Several answers to each question: majority, pass@k, and draws that depend on nothing else."""

import dataclasses
import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.checkpoints import runs
from research.evaluation import answer_cache, comparison, results, samples
from research.evaluation.generation_task import GenerationTask
from research.evaluation.report import evaluate_run, loaded_model
from research.evaluation.results import Answer
from research.evaluation.samples import Majority, find_majority, pass_at_k
from research.evaluation.scorers.code import Code
from research.evaluation.scorers.exact_match import ExactMatch
from research.evaluation.scorers.json_schema import JsonSchema
from research.evaluation.scorers.numeric import Numeric
from research.evaluation.scorers.pattern import Pattern
from research.evaluation.scorers.token_f1 import TokenF1
from research.evaluation.tasks import Evaluation
from research.generation.sampling import Sampling
from tests.helpers.tiny_run import world


def test_pass_at_k_is_the_share_of_draws_that_hold_a_right_one():
    for n in range(1, 8):
        for passed, k in itertools.product(range(n + 1), range(1, n + 1)):
            draws = list(itertools.combinations(range(n), k))  # the first `passed` are right
            share = sum(min(draw) < passed for draw in draws) / len(draws)
            assert pass_at_k(n, passed, k) == pytest.approx(share)


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 1.0])
def test_pass_at_k_has_no_bias(p):
    """Its mean over all that n samples may come to is what k samples alone would give."""
    n = 10
    for k in (1, 3, 10):
        chances = [math.comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(n + 1)]
        mean = sum(
            chance * pass_at_k(n, c, k) for c, chance in zip(range(n + 1), chances, strict=True)
        )
        assert mean == pytest.approx(1 - (1 - p) ** k)
    # as in the paper's listing: 1 - prod(1 - k / i) for i from n - c + 1 to n
    product = math.prod(1 - 5 / i for i in range(200 - 13 + 1, 200 + 1))
    assert pass_at_k(200, 13, 5) == pytest.approx(1 - product)


@given(st.lists(st.none() | st.sampled_from("abc"), min_size=1, max_size=8))
def test_the_majority_is_the_first_of_the_most_frequent(readings):
    counts = [0 if reading is None else readings.count(reading) for reading in readings]
    best = counts.index(max(counts))
    assert find_majority(readings) == Majority(best, max(counts) / len(readings))


def test_samples_agree_by_what_a_scorer_reads_in_them():
    for scorer, same, other in (
        (Numeric(after="answer is"), ["the answer is 7.0", "So answer is $7"], "answer is 8"),
        (Numeric(), ["1,000", "1e3"], "999"),
        (Numeric(), ["0", "-0.0"], "9007199254740993"),
        (Numeric(), ["900719925474099300000000000000001"], "900719925474099300000000000000002"),
        (ExactMatch(extract=r"is (\w+)"), ["it is Red", "that is red."], "is blue"),
        (JsonSchema(), ['{"a": 1, "b": 2}', '{"b": 2.0, "a": 1}'], '{"a": 1}'),
        (Code(), ["```python\na = 1\n```\nSo it is.", "See:\n```\na = 1\n```"], "b = 1"),
        (Pattern(".*"), [" a", "a\n"], "A"),
    ):
        assert len({scorer.reading(text) for text in same}) == 1
        assert scorer.reading(other) not in {None, scorer.reading(same[0])}
    for scorer, text in (
        (Numeric(), "none"),
        (Numeric(after="is"), "it is so"),
        (ExactMatch(extract="(x)"), "y"),
        (JsonSchema(), "{"),
    ):
        assert scorer.reading(text) is None


def sample(text, right, f1, **settings):
    scores = {"numeric": float(right), "token_f1": f1, "recall": 0.5}
    return Answer("q", text, "d", scores, new_tokens=len(text), **settings)


def test_samples_of_a_question_come_to_one_answer():
    answers = [
        sample("3", 0, 0.2),
        sample("7", 1, 0.4, is_cut=True),
        sample("7.0", 1, 0.3),
        sample("none", 0, 0.0, unreadable="there is no number in it"),
    ]
    readings = {"numeric": ["3", "7", "7", None], "token_f1": ["3", "7", "7.0", "none"]}
    joined = samples.join_samples(answers, readings)
    assert joined.scores == {
        "numeric": 0.5,
        "token_f1": pytest.approx(0.9 / 4),
        "recall": 0.5,
        "agreement/numeric": 0.5,
        "majority/numeric": 1.0,
        "agreement/token_f1": 0.25,
        "majority/token_f1": 0.2,
    }
    assert (joined.answer, joined.is_cut, joined.new_tokens) == ("7", True, 9)
    assert joined.unreadable == "1 of 4: there is no number in it"
    assert joined.samples == ["3", "7", "7.0", "none"] and joined.sample_tokens == [1, 1, 3, 4]
    # of 0 and 1 alone: in no other metric does one pass
    (first,) = samples.add_pass_at([joined], [1, 2, 4])
    passes = {name: value for name, value in first.scores.items() if name.startswith("pass@")}
    expected = {1: 0.5, 2: 1 - 1 / 6, 4: 1.0}
    assert passes == {f"pass@{k}/numeric": pytest.approx(value) for k, value in expected.items()}


def test_shares_of_several_things_keep_their_weights_and_do_not_pass():
    answers = [
        Answer("q", text, "d", {"ifeval/instruction": share, "ifeval/prompt": share})
        for text, share in (("a", 1.0), ("b", 0.0))
    ]
    answers = [dataclasses.replace(a, weights={"ifeval/instruction": 3}) for a in answers]
    joined = samples.join_samples(answers, {"ifeval": ["a", "b"]})
    assert joined.weights == {"ifeval/instruction": 3, "majority/ifeval/instruction": 3}
    (first,) = samples.add_pass_at([joined], [2])
    assert [name for name in first.scores if name.startswith("pass@")] == ["pass@2/ifeval/prompt"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return world(tmp_path_factory.getbasetemp())


def task(place, **settings):
    source = place.questions().sources[0]
    defaults = {"split": "heldout", "scorers": (ExactMatch(), TokenF1()), "max_tokens": 3}
    defaults |= {"sampling": Sampling(temperature=1.0, seed=3), "samples": 3, "pass_at": (1, 3)}
    return GenerationTask(source, **defaults | settings)


def test_draws_depend_on_the_question_and_the_sample_alone(place):
    run = runs.open_run(place.base)

    def ask(**settings):
        evaluation = Evaluation(tasks={"t": task(place, **settings)})
        return evaluate_run(run, evaluation).tasks["t"]

    few, more = ask(max_questions=3, batch_size=1), ask(max_questions=6)
    by_digest = {answer.digest: answer.samples for answer in more.answers}
    assert all(by_digest[answer.digest] == answer.samples for answer in few.answers)
    drawn_texts = [text for answer in more.answers for text in answer.samples]
    assert len(drawn_texts) == 18 and len(set(drawn_texts)) > 6  # nor alike
    other = ask(max_questions=3, sampling=Sampling(temperature=1.0, seed=4))
    assert [a.samples for a in other.answers] != [a.samples for a in few.answers]
    # the first samples of a question are the same however many there are
    two = ask(max_questions=3, samples=2, pass_at=())
    assert [a.samples for a in two.answers] == [a.samples[:2] for a in few.answers]
    one = ask(max_questions=5, samples=1, pass_at=())
    first_of = {a.digest: a.samples[0] for a in more.answers}
    assert all(first_of[a.digest] == a.answer for a in one.answers if a.digest in first_of)
    assert any(a.digest in first_of for a in one.answers)


def test_a_metric_is_the_mean_over_samples_and_pairs_by_question(place, tmp_path):
    run = runs.open_run(place.base)
    result = evaluate_run(run, Evaluation(tasks={"t": task(place, max_questions=4)})).tasks["t"]
    assert len(result.answers) == 4
    scorers = ("exact_match", "token_f1")
    assert {*scorers, *(f"majority/{name}" for name in scorers)} < result.metrics.keys()
    assert {"agreement/exact_match", "pass@1/exact_match", "pass@3/exact_match"} < set(
        result.metrics
    )
    every = [score for answer in result.answers for score in answer.sample_scores["exact_match"]]
    assert len(every) == 12 and result.metrics["exact_match"].value == pytest.approx(np.mean(every))
    assert result.metrics["exact_match"].n == 4  # a question is a cluster
    assert result.metrics["pass@1/exact_match"].value == pytest.approx(np.mean(every))
    assert result.new_tokens == sum(sum(answer.sample_tokens) for answer in result.answers)
    # kept and read again, and compared question by question
    content = json.loads(json.dumps(result.to_dict()))
    again = results.read_result(content)
    differences = comparison.compare({"t": result}, {"t": again})
    assert {each.metric for each in differences} == result.metrics.keys()
    assert all(each.paired.difference.value == 0 for each in differences)


def test_questions_that_were_answered_keep_their_samples(place, tmp_path):
    """As where an evaluation was killed after two of four."""
    the_task, parts = task(place, max_questions=4, batch_size=1), []
    questions = the_task.read()
    cache = answer_cache.open_cache(tmp_path, {"a": 1}, "t")
    with loaded_model(runs.open_run(place.base)) as model:
        whole = the_task.answer(model, questions, "t", keep=parts.append)
        for part in parts[:2]:
            cache.add(part)
        rest = []
        again = the_task.answer(model, questions, "t", cache.read(), rest.append)
    assert sorted(set(part.answers).pop() for part in parts) == [0, 1, 2, 3]
    assert again.answers == whole.answers and len(rest) == 2
    # each sample reads its prompt and writes its tokens, and the end of what is not cut
    count = sum(
        model.flops.answer(answer.prompt_tokens, tokens + (tokens < 3))
        for answer in whole.answers
        for tokens in answer.sample_tokens
    )
    assert again.cost.flops == whole.cost.flops == pytest.approx(count)


def test_samples_that_would_be_alike_or_too_few_are_refused(place):
    with pytest.raises(ValueError, match="3 samples of the likeliest tokens are all the same"):
        task(place, sampling=Sampling())
    with pytest.raises(ValueError, match="pass@4 needs as many `samples`, and there are 3"):
        task(place, pass_at=(4,))
    assert task(place, samples=1, pass_at=(1,), sampling=Sampling()).samples == 1
