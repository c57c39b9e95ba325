"""Fill in the middle: the text comes back from either order, and everything is trained on."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research.objectives import markers
from research.objectives.fill_in_the_middle import FillInTheMiddle
from tests.objectives import cases

TEXT_MARKERS = {"prefix": "<1>", "suffix": "<2>", "middle": "\x03"}


def _text(example, ids, tokenizer):
    """(tokens of the text, "psm", "spm" or None) of an example."""
    prefix, suffix, middle = (part.tolist() for part in ids)
    assert example.weights == [1.0] * len(example.tokens) and not any(example.prefix)
    assert example.targets[:-1] == example.tokens[1:]
    whole = [*example.tokens, example.targets[-1]]
    if whole[1 : 1 + len(prefix)] != prefix:
        ends = whole[-1] == tokenizer.end_id
        return whole[1 : len(whole) - ends], None
    assert whole[0] == tokenizer.begin_id and whole[-1] == tokenizer.end_id
    whole = whole[1 + len(prefix) : -1]
    first = cases.find(suffix, whole)
    second = cases.find(middle, whole, first + len(suffix))
    before, after = whole[:first], whole[first + len(suffix) : second]
    spm = "psm" if before else "spm"
    return before + whole[second + len(middle) :] + after, spm


@given(
    cases.TEXTS,
    st.integers(12, 60),
    st.sampled_from([0.3, 1.0]),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.booleans(),
    st.integers(0, 99),
)
@settings(max_examples=100)
def test_the_text_comes_back_from_the_rows(texts, window, share, suffix_first, special, seed):
    tokenizer = cases.tokenizer(special)
    names = {} if special else TEXT_MARKERS
    objective = FillInTheMiddle(share, suffix_first, seed=seed, **names)
    examples = objective.prepare(cases.table(texts, tokenizer), tokenizer, window)
    ids = markers.encode((objective.prefix, objective.suffix, objective.middle), tokenizer)
    texts_and_orders = {
        index: _text(example, ids, tokenizer)
        for index, example in cases.read_back(examples, tokenizer, window).items()
    }
    tokens = {index: text for index, (text, _) in texts_and_orders.items()}
    assert cases.documents(tokens, examples, len(texts)) == [
        tokenizer.encode(text) for text in texts
    ]
    assert np.array_equal(examples.trained, examples.lengths)
    assert examples.bytes.sum() == sum(len(text.encode()) for text in texts)
    orders = {order for text, order in texts_and_orders.values() if text}
    if share == 1:
        assert None not in orders
    if suffix_first == 1:
        assert "psm" not in orders


def test_the_configured_shares_are_reordered_at_even_places():
    tokenizer = cases.tokenizer()
    texts = ["some words. " * 3] * 2000
    objective = FillInTheMiddle(0.6, 0.25)
    examples = objective.prepare(cases.table(texts, tokenizer), tokenizer, 64)
    size = len(tokenizer.encode(texts[0]))
    prefix, suffix, middle = (tokenizer.encode(name, special=True)[0] for name in cases.SPECIAL[:3])
    wholes = [examples.piece(i, 0, int(n)).tokens.tolist() for i, n in enumerate(examples.lengths)]
    moved = [whole for whole in wholes if whole[1] == prefix]
    spm = [whole for whole in moved if whole[2] == suffix]
    # three standard errors of 2000 draws; the seed is fixed
    assert len(moved) / 2000 == pytest.approx(0.6, abs=0.03)
    # a PSM without a prefix looks like an SPM
    empty = 1 - (size / (size + 1)) ** 2
    # two standard errors of 1200 draws
    assert len(spm) / len(moved) == pytest.approx(0.25 + 0.75 * empty, abs=0.03)
    psm = [whole for whole in moved if whole[2] != suffix]
    lengths = [len(whole) - 1 - whole.index(middle) for whole in psm]
    # of three parts that two even cuts leave, each is a third of the text on average
    # (to three standard errors of some hundred, whose spread is 0.7 of the mean)
    assert np.mean(lengths) == pytest.approx(size / 3, rel=0.1)


@pytest.mark.parametrize(
    "settings_, window, message",
    [
        ({"share": 0.0}, 64, "share must be above 0 and at most 1, not 0.0"),
        ({"share": float("nan")}, 64, "share must be"),
        ({"suffix_first": 1.5}, 64, "suffix_first must be from 0 to 1, not 1.5"),
        ({"middle": ""}, 64, "The marker '' has no token"),
        ({"middle": "<|fim_suffix|>"}, 64, "cannot be told apart"),
        ({"prefix": "ab", "suffix": "abc"}, 64, "'ab' and 'abc' cannot be told apart"),
        ({"suffix": "wor"}, 64, "made, row 1: the text holds the marker 'wor'"),
        ({}, 4, r"A window of 4 tokens has no room for text .* markers \(4 tokens\)"),
    ],
)
def test_what_cannot_be_is_named(settings_, window, message):
    tokenizer = cases.tokenizer()
    table = cases.table(["some", "awor"], tokenizer)
    with pytest.raises(ValueError, match=message):
        FillInTheMiddle(**settings_).prepare(table, tokenizer, window)


def test_a_marker_is_found_wherever_the_search_is_cut(monkeypatch):
    tokenizer = cases.tokenizer(False)
    table = cases.table(["some words", "some <1> words"], tokenizer)
    for chunk in range(1, 12):
        monkeypatch.setattr(markers, "_CHUNK", chunk)
        with pytest.raises(ValueError, match="row 1: the text holds the marker '<1>'"):
            FillInTheMiddle(**TEXT_MARKERS).prepare(table, tokenizer, 64)
