"""Our scores against the packages that the field compares with. Needs `tools/setup evaluate`."""

import importlib.metadata
import math
import random
import re

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from research.data.builders.graft_instruction_pairs import instructions
from research.data.sources import TfdsConfig, open_source
from research.evaluation.calibration import BINS, calibrate
from research.evaluation.scorers import ifeval
from research.evaluation.scorers.exact_match import ExactMatch
from research.evaluation.scorers.ifeval import IfEval
from research.evaluation.scorers.rouge_l import RougeL
from research.evaluation.scorers.token_f1 import TokenF1

if_verifiable = pytest.importorskip("if_verifiable", reason="tools/setup evaluate")
rouge_scorer = pytest.importorskip("rouge_score.rouge_scorer", reason="tools/setup evaluate")
squad = pytest.importorskip("lm_eval.tasks.qasper.metrics", reason="tools/setup evaluate")
pytestmark = pytest.mark.heavy

WORDS = st.lists(st.sampled_from("the A cat sat. sat, on Mat 3 mat's é İ a-b".split()), max_size=12)
TEXTS = WORDS.map(" ".join) | st.text(max_size=20)


def value(scorer, answer, completion):
    (number,) = scorer.score(answer, {"completion": completion}).values.values()
    return number


@settings(max_examples=300, deadline=None)
@given(answer=TEXTS, right=TEXTS)
def test_rouge_l_is_that_of_rouge_score(answer, right):
    scorer = rouge_scorer.RougeScorer(["rougeL"])
    expected = scorer.score(right, answer)["rougeL"].fmeasure
    # precision, recall and their mean, against one division
    assert math.isclose(value(RougeL(), answer, right), expected, rel_tol=1e-12)


@settings(max_examples=300, deadline=None)
@given(answer=TEXTS, right=TEXTS)
def test_words_in_common_are_those_of_squads_script_in_lm_eval(answer, right):
    normal = [squad.normalize_answer(text) for text in (answer, right)]
    is_equal = float(normal[0] == normal[1])
    assert value(ExactMatch(comparison="squad"), answer, right) == is_equal
    assume(any(normal))  # SQuAD 1.1's says 0 where neither has a word, and 2.0's, as ours, 1
    expected = squad.f1_abstractive([answer], [right])
    # precision, recall and their mean, against one division
    assert math.isclose(value(TokenF1(), answer, right), expected, rel_tol=1e-12)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 60), st.booleans()), min_size=1, max_size=40))
def test_sureness_is_measured_as_scikit_learn_does(pairs):
    from sklearn.calibration import calibration_curve
    from sklearn.metrics import accuracy_score, brier_score_loss

    confidences = np.asarray([number / 60 for number, _ in pairs])  # on edges of bins, and off them
    right = np.asarray([float(is_right) for _, is_right in pairs])
    ours = calibrate(confidences, right)
    brier = brier_score_loss(right, confidences, labels=[0, 1])
    assert math.isclose(ours.brier, brier, abs_tol=1e-12)  # sums of 40 numbers
    shares, sureness = calibration_curve(right, confidences, n_bins=BINS)
    bins = np.searchsorted(np.linspace(0, 1, BINS + 1)[1:-1], confidences)
    sizes = np.unique(bins, return_counts=True)[1]
    error = np.sum(np.abs(shares - sureness) * sizes) / len(right)
    assert math.isclose(ours.error, error, abs_tol=1e-12)  # the same, in bins
    order = sorted(range(len(right)), key=lambda i: -confidences[i])[: (len(right) + 1) // 2]
    surest = accuracy_score(np.ones(len(order)), right[order])
    assert math.isclose(ours.surest_half, surest, abs_tol=1e-12)  # one division


# one of every kind but those that need a sentence splitter
CHECKS = {
    "keywords:existence": {"keywords": ["cat", "dog"]},
    "keywords:frequency": {"keyword": "cat", "frequency": 2, "relation": "at least"},
    "keywords:forbidden_words": {"forbidden_words": ["dog"]},
    "keywords:letter_frequency": {"letter": "c", "let_frequency": 2, "let_relation": "less than"},
    "language:response_language": {"language": "en"},
    "length_constraints:number_paragraphs": {"num_paragraphs": 2},
    "length_constraints:number_words": {"num_words": 6, "relation": "at least"},
    "length_constraints:nth_paragraph_first_word": {
        **{"num_paragraphs": 2, "nth_paragraph": 1, "first_word": "the"}
    },
    "detectable_content:number_placeholders": {"num_placeholders": 1},
    "detectable_content:postscript": {"postscript_marker": "P.S."},
    "detectable_format:number_bullet_lists": {"num_bullets": 2},
    "detectable_format:constrained_response": {},
    "detectable_format:number_highlighted_sections": {"num_highlights": 1},
    "detectable_format:multiple_sections": {"section_spliter": "Section", "num_sections": 2},
    "detectable_format:json_format": {},
    "detectable_format:title": {},
    "combination:two_responses": {},
    "combination:repeat_prompt": {"prompt_to_repeat": "Say cat."},
    "startend:end_checker": {"end_phrase": "the end"},
    "startend:quotation": {},
    "change_case:english_capital": {},
    "change_case:english_lowercase": {},
    "punctuation:no_comma": {},
}
UNCHECKED = {
    "length_constraints:number_sentences": {"num_sentences": 2, "relation": "at least"},
    "change_case:capital_word_frequency": {
        **{"capital_frequency": 1, "capital_relation": "at least"}
    },
}
ANSWERS = [
    *("", "  \n", "the cat sat on the mat, and the cat slept.", "THE CAT SAT ON THE MAT"),
    *('Sure:\n"the *cat* sat"\n\nthe end', "<<A cat>>\n* one\n* two\nP.S. [name]", '{"cat": 1}'),
    *("the cat\n\n***\n\na dog, twice: cat, cat\n\n***\n", "My answer is yes.", "Say cat. cat"),
    *("a\n******\nb", "Section 1\ncat\nSection 2\ndog", "```json\n{}\n```"),
    "Hello!\nthe cat is here and it sleeps\n\nthe end",
]


@pytest.fixture(autouse=True)
def no_sentence_splitter(monkeypatch):
    """As where nothing was downloaded for nltk, wherever the tests run."""
    import nltk

    monkeypatch.setattr(nltk.data, "path", [])
    nltk.data.clear_cache()
    ifeval._is_checkable.cache_clear()


def test_where_no_splitter_is_answers_are_not_those_of_a_machine_with_one():
    assert IfEval().machine_key == [importlib.metadata.version("if-verifiable"), False]


def record(names):
    # as in tables, where every instruction has every setting
    every = {key: None for check in (CHECKS | UNCHECKED).values() for key in check}
    settings = [every | (CHECKS | UNCHECKED)[name] for name in names]
    return {"prompt": "Say cat.", "instruction_id_list": names, "kwargs": settings}


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.sampled_from(sorted(CHECKS)), min_size=1, max_size=4, unique=True),
    st.sampled_from(ANSWERS) | st.text(max_size=30),
)
def test_instructions_are_followed_as_if_verifiable_says(names, answer):
    row = record(names)
    sample = if_verifiable.IFEvalSample(key=0, **row)
    _, expected = if_verifiable.evaluate_output_for_sample("ifeval", sample, answer)
    assert IfEval().score(answer, row).values == {
        "ifeval/instruction_strict": expected.partial_strict,
        "ifeval/instruction_loose": expected.partial_loose,
        "ifeval/prompt_strict": expected.binary_strict,
        "ifeval/prompt_loose": expected.binary_loose,
    }


def test_every_kind_of_instruction_is_followed_by_some_answer_and_not_by_others():
    for name in CHECKS:
        rights = {IfEval().score(a, record([name])).values["ifeval/prompt_loose"] for a in ANSWERS}
        assert rights == {0.0, 1.0}, name
    answer = "Sure, here:\nthe cat"
    values = IfEval().score(answer, record(["punctuation:no_comma"])).values
    assert values["ifeval/prompt_strict"] == 0 and values["ifeval/prompt_loose"] == 1


def test_what_cannot_be_checked_is_counted_and_not_scored():
    names = ["punctuation:no_comma", *UNCHECKED, "startend:quotation"]
    for answer, share in (("a", 0.5), ('"a"', 1.0), ("", 0.0)):
        scores = IfEval().score(answer, record(names))
        assert scores.values == {
            **{"ifeval/instruction_strict": share, "ifeval/instruction_loose": share}
        }
        assert set(scores.weights.values()) == {2}
        assert scores.unscored == {
            "instructions that cannot be checked here": 2,
            "prompts with such an instruction": 1,
        }
    scores = IfEval().score("a", record(list(UNCHECKED)))
    assert not scores.values and scores.unscored["instructions that cannot be checked here"] == 2


def test_instructions_that_are_none_or_would_be_drawn_are_refused():
    for row, message in (
        ({}, "it needs `instruction_id_list`"),
        (record(["startend:quotation"]) | {"kwargs": []}, "a list of as many"),
        (
            {"instruction_id_list": ["startend:quote"], "kwargs": [{}]},
            "no instruction 'startend:quote'; did you mean startend:quotation",
        ),
        (
            {"instruction_id_list": ["keywords:frequency"], "kwargs": [{"keyword": "a"}]},
            "kwargs lack frequency, relation",
        ),
        ({"instruction_id_list": ["startend:quotation"], "kwargs": [{"a": 1}]}, "do not fit"),
    ):
        with pytest.raises(ValueError, match=message):
            IfEval().score("a", row)


def test_answers_that_a_program_made_follow_their_instructions():
    """The verifiers are another's; two of them guess the language, which short answers hide."""
    parts = ["Ada was a countess, and a writer.", "She wrote of engines.", "Others read of them."]
    failures = []
    guessed = {"change_case:english_lowercase", "change_case:english_capital"}
    for seed in range(600):
        pair = instructions.follow(random.Random(seed), f"Ada {seed}", parts[: 2 + seed % 2])
        if pair is None:
            continue
        answer, followed = pair
        for each in followed:
            record = {"prompt": "", "instruction_id_list": [each.name], "kwargs": [each.settings]}
            score = IfEval().score(answer, record).values["ifeval/instruction_strict"]
            if score < 1 and each.name not in guessed:
                failures.append((seed, each, answer))
    assert not failures


def test_no_pair_that_is_tuned_on_shares_eight_words_with_a_prompt_of_ifeval():
    def runs(text):
        words = re.findall(r"\w+", text.lower())
        return {tuple(words[i : i + 8]) for i in range(len(words) - 7)}

    def prompts(name, *splits):
        config = TfdsConfig(name, unused_fields=(".*",))
        sources = [open_source(config, split) for split in splits]
        return [source[row]["prompt"] for source in sources for row in range(len(source))]

    of_ifeval = set().union(*map(runs, prompts("graft_instructions", "test")))
    pairs = prompts("graft_instruction_pairs", "train", "validation", "test")
    assert len(of_ifeval) > 10_000 and len(pairs) > 7_000
    assert not [prompt for prompt in pairs if runs(prompt) & of_ifeval]
