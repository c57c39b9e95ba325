"""Masked: each chosen token is said at its own place, and nothing else is trained on."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research.objectives.masked import Masked
from tests.objectives import cases

SHARES = st.sampled_from([(0.8, 0.1), (1.0, 0.0), (0.0, 1.0), (0.0, 0.0)])


@given(
    cases.TEXTS,
    st.integers(2, 60),
    st.sampled_from([0.05, 0.15, 0.9]),
    SHARES,
    st.booleans(),
    st.integers(0, 99),
)
@settings(max_examples=80)
def test_the_text_comes_back_from_the_rows(texts, window, rate, shares, special, seed):
    tokenizer = cases.tokenizer(special)
    objective = Masked(rate, *shares, mask="<|mask|>" if special else "\x01", seed=seed)
    mask = tokenizer.encode(objective.mask, special=True)[0]
    examples = objective.prepare(cases.table(texts, tokenizer), tokenizer, window)
    assert examples.bytes is None and not examples.ends
    tokens = {}
    for index, example in cases.read_back(examples, tokenizer, window).items():
        assert (
            all(example.prefix)
            and example.tokens[0] == tokenizer.begin_id
            and not example.weights[0]
        )
        text = example.targets[1:]
        is_target = np.asarray(example.weights[1:]) > 0
        assert is_target.sum() == max(1, round(len(text) * rate))
        inputs = np.asarray(example.tokens[1:])
        # what is not asked for is read as it is
        assert np.array_equal(inputs[~is_target], np.asarray(text)[~is_target])
        if shares == (1.0, 0.0):
            assert (inputs[is_target] == mask).all()
        if shares == (0.0, 0.0):
            assert inputs.tolist() == text
        # special tokens are no words, but for the mask
        assert not (set(inputs.tolist()) - {mask}) & tokenizer.special_ids
        tokens[index] = text
    expected = [tokenizer.encode(text) for text in texts]
    assert cases.documents(tokens, examples, len(texts)) == expected


def test_chosen_tokens_are_masked_random_or_kept_in_the_configured_shares():
    tokenizer = cases.tokenizer()
    text = "o" * 200
    examples = Masked().prepare(cases.table([text] * 300, tokenizer), tokenizer, 256)
    (token,), (mask,) = set(tokenizer.encode(text[:1])), tokenizer.encode("<|mask|>", special=True)
    row_examples = cases.read_back(examples, tokenizer, 256).values()
    whole = np.asarray([[*each.tokens] for each in row_examples])
    is_target = np.asarray([each.weights for each in row_examples]) > 0
    counts = is_target[:, 1:].sum(0)
    assert (is_target.sum(1) == round(0.15 * whole.shape[1])).all()
    assert counts.min() > 0 and counts.std() < 1.3 * np.sqrt(300 * 0.15 * 0.85)
    inputs = whole[is_target]
    # two standard errors of 9000 draws; the seed is fixed
    assert np.mean(inputs == mask) == pytest.approx(0.8, abs=0.01)
    others = inputs[(inputs != mask) & (inputs != token)]
    # as above
    assert len(others) / len(inputs) == pytest.approx(0.1, abs=0.01)
    assert len(np.unique(others)) > 0.9 * len(tokenizer.text_ids)


@pytest.mark.parametrize(
    "settings_, window, message",
    [
        ({"rate": 0.0}, 64, "rate must be between 0 and 1, not 0.0"),
        ({"rate": 1.0}, 64, "rate must be between 0 and 1, not 1.0"),
        ({"masked": 0.95}, 64, "add up to at most 1, not 0.95 and 0.1"),
        ({"masked": -0.1}, 64, "not negative"),
        ({"mask": ""}, 64, "The marker '' has no token"),
        ({"mask": "[MASK]"}, 64, r"'\[MASK\]' must be one token, but the tokenizer spells it with"),
        ({"mask": "x"}, 64, "made, row 1: the text holds the marker 'x'"),
        ({}, 1, "A window of 1 tokens has no room for text"),
    ],
)
def test_what_cannot_be_is_named(settings_, window, message):
    tokenizer = cases.tokenizer()
    table = cases.table(["some", "some xs"], tokenizer)
    with pytest.raises(ValueError, match=message):
        Masked(**settings_).prepare(table, tokenizer, window)
