"""Span corruption: what is read and what is said join to the text."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research.objectives import markers
from research.objectives.span_corruption import SpanCorruption
from tests.objectives import cases


def _text(example, objective, tokenizer):
    """(visible spans, hidden spans) of an example."""
    prefix_length = sum(example.prefix)
    assert all(example.prefix[:prefix_length]) and example.tokens[0] == tokenizer.begin_id
    # trained is exactly what follows the prefix, whose last place says the first of it
    assert example.weights == [0.0] * (prefix_length - 1) + [1.0] * (
        len(example.tokens) - prefix_length + 1
    )
    assert example.targets[:-1] == example.tokens[1:] and example.targets[-1] == tokenizer.end_id
    corrupted, targets = example.tokens[1:prefix_length], example.targets[prefix_length - 1 : -1]
    visible_spans, hidden_spans, number = [], [], 0
    while corrupted:
        sentinel = tokenizer.encode(objective.sentinel.format(number=number), special=True)
        place = cases.find(sentinel, corrupted)
        visible_spans.append(corrupted[:place])
        corrupted = corrupted[place + len(sentinel) :]
        assert targets[: len(sentinel)] == sentinel
        targets = targets[len(sentinel) :]
        following = tokenizer.encode(objective.sentinel.format(number=number + 1), special=True)
        size = cases.find(following, targets) if corrupted else len(targets)
        hidden_spans.append(targets[:size])
        targets = targets[size:]
        number += 1
    assert all(visible_spans) and all(hidden_spans) and not targets
    return visible_spans, hidden_spans


@given(
    cases.TEXTS,
    st.integers(16, 60),
    st.sampled_from([0.05, 0.15, 0.5, 0.9]),
    st.sampled_from([1.0, 3.0, 8.5]),
    st.integers(0, 99),
)
@settings(max_examples=100)
def test_the_text_comes_back_from_the_rows(texts, window, rate, mean_span, seed):
    tokenizer = cases.tokenizer(False)
    objective = SpanCorruption(rate, mean_span, "<{number}>", seed)
    examples = objective.prepare(cases.table(texts, tokenizer), tokenizer, window)
    assert examples.bytes is None
    tokens = {}
    for index, example in cases.read_back(examples, tokenizer, window).items():
        visible_spans, hidden_spans = _text(example, objective, tokenizer)
        size = sum(map(len, visible_spans)) + sum(map(len, hidden_spans))
        expected = objective.spans(np.asarray([size]))
        assert (sum(map(len, hidden_spans)), len(hidden_spans)) == (expected[0][0], expected[1][0])
        tokens[index] = [
            t for pair in zip(visible_spans, hidden_spans, strict=True) for p in pair for t in p
        ]
    # a text's last window may hold one token, which is left out
    documents = cases.documents(tokens, examples, len(texts))
    for text, document in zip(texts, documents, strict=True):
        ids = tokenizer.encode(text)
        assert document == ids[: len(document)] and len(ids) - len(document) < 2


def test_special_tokens_serve_as_sentinels_as_in_t5():
    tokenizer = cases.tokenizer()
    texts = ["some words. are words some"]
    objective = SpanCorruption(0.3, 2.0)
    examples = objective.prepare(cases.table(texts, tokenizer), tokenizer, 64)
    example = cases.read_back(examples, tokenizer, 64)[0]
    _, hidden_spans = _text(example, objective, tokenizer)
    size = len(tokenizer.encode(texts[0]))
    spans = round(round(size * 0.3) / 2)
    assert len(hidden_spans) == spans and examples.lengths[0] == 1 + size + 2 * spans
    assert examples.trained[0] == sum(map(len, hidden_spans)) + spans + 1


def test_hidden_tokens_are_the_configured_share_everywhere_in_the_text():
    tokenizer = cases.tokenizer(False)
    objective = SpanCorruption(sentinel="<{number}>")
    text = "o" * 100
    examples = objective.prepare(cases.table([text] * 600, tokenizer), tokenizer, 256)
    places, sizes = np.zeros(100), []
    for example in cases.read_back(examples, tokenizer, 256).values():
        visible_spans, hidden_spans = _text(example, objective, tokenizer)
        lengths = [
            len(part) for pair in zip(visible_spans, hidden_spans, strict=True) for part in pair
        ]
        ends = np.cumsum(lengths)
        for first, last in zip(ends[0::2], ends[1::2], strict=True):
            places[first:last] += 1
        sizes += lengths[1::2]
    assert places.sum() / 600 == 15 and np.mean(sizes) == 3
    assert np.unique(sizes).tolist() == list(range(1, 12))
    # the last span is hidden, as in T5; before it each token is hidden alike
    assert places[-1] == 600 and np.std(places[5:60]) < 0.35 * np.mean(places[5:60])


@pytest.mark.parametrize(
    "settings_, window, message",
    [
        ({"rate": 0.0}, 64, "rate must be between 0 and 1, not 0.0"),
        ({"rate": 1.0}, 64, "rate must be between 0 and 1, not 1.0"),
        ({"rate": float("nan")}, 64, "rate must be between 0 and 1"),
        ({"mean_span": 0.5}, 64, "mean_span must be at least 1, not 0.5"),
        ({"sentinel": "<x>"}, 64, r"hold \{number\} exactly once, not 0 times: '<x>'"),
        ({"sentinel": "{number}", "rate": 0.5}, 200, "'1' and '10' cannot be told apart"),
        ({"sentinel": "<{number}>"}, 64, "made, row 1: the text holds the marker '<1>'"),
        ({"rate": 0.5, "mean_span": 1.0}, 64, "has only 12 sentinels .*'<extra_id_11>'.* needs 15"),
        ({}, 4, "A window of 4 tokens has no room for two tokens of text"),
    ],
)
def test_what_cannot_be_is_named(settings_, window, message):
    tokenizer = cases.tokenizer()
    table = cases.table(["some", "some <1> words"], tokenizer)
    with pytest.raises(ValueError, match=message):
        SpanCorruption(**settings_).prepare(table, tokenizer, window)


def test_a_sentinel_that_no_window_needs_may_stand_in_the_text():
    tokenizer = cases.tokenizer()
    table = cases.table(["some", "some <9> words"], tokenizer)
    assert len(SpanCorruption(sentinel="<{number}>").prepare(table, tokenizer, 64)) == 2
    assert markers.is_special(np.asarray(tokenizer.encode("<|mask|>", special=True)), tokenizer)
