"""Prefix-LM: a prefix is read both ways, and all that follows is trained on."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research.objectives.prefix_lm import PrefixLM
from tests.objectives import cases

SHARES = st.sampled_from([(0.0, 1.0), (0.0, 0.0), (1.0, 1.0), (0.4, 0.6)])


@given(cases.TEXTS, st.integers(1, 60), SHARES, st.integers(0, 99))
@settings(max_examples=80)
def test_the_text_comes_back_from_the_rows(texts, window, shares, seed):
    tokenizer = cases.tokenizer()
    table = cases.table(texts, tokenizer)
    examples = PrefixLM(*shares, seed=seed).prepare(table, tokenizer, window)
    tokens = {}
    for index, example in cases.read_back(examples, tokenizer, window).items():
        prefix_length = sum(example.prefix)
        places = len(example.tokens)
        assert 1 <= prefix_length <= places and all(example.prefix[:prefix_length])
        # the last place of the prefix says the first token after it
        assert example.weights == [0.0] * (prefix_length - 1) + [1.0] * (places - prefix_length + 1)
        assert shares[0] * places - 1 <= prefix_length - 1 <= shares[1] * places
        assert example.targets[:-1] == example.tokens[1:]
        tokens[index] = example.targets
        continuation = np.asarray(example.targets)[prefix_length - 1 :]
        assert examples.bytes[index] == tokenizer.byte_lengths[continuation].sum()
    expected = [[*tokenizer.encode(text), tokenizer.end_id] for text in texts]
    assert cases.documents(tokens, examples, len(texts)) == expected


def test_prefixes_end_at_even_places():
    tokenizer = cases.tokenizer()
    table = cases.table(["some words. " * 20] * 1000, tokenizer)
    examples = PrefixLM().prepare(table, tokenizer, 512)
    # three standard errors of 1000 places, whose spread is 0.29
    assert (examples.trained / examples.lengths).mean() == pytest.approx(0.5, abs=0.03)
    # as above
    assert (examples.bytes / table.bytes["text"]).mean() == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("shares", [(0.5, 0.4), (-0.1, 1.0), (0.0, 1.1), (float("nan"), 1.0)])
def test_shares_that_cannot_be_are_named(shares):
    with pytest.raises(ValueError, match="shares from 0 to 1 in this order"):
        PrefixLM(*shares)
