"""The mixture of denoisers: each example is one of its part's, behind a mode token."""

import numpy as np
import pytest
from hypothesis import given

from research.objectives.ul2 import UL2, Denoiser
from tests.objectives import cases

SMALL = (Denoiser("<|mask|>", 0.15, 3.0), Denoiser("[S]"), Denoiser("[X]", 0.5, 8.0, weight=2.0))
WINDOW = 48


@given(cases.TEXTS)
def test_an_example_is_its_denoisers_behind_the_mode(texts):
    tokenizer = cases.tokenizer()
    table = cases.table(texts, tokenizer)
    objective = UL2(SMALL, seed=3)
    examples = objective.prepare(table, tokenizer, WINDOW)
    row_examples = cases.read_back(examples, tokenizer, WINDOW)
    modes = [tokenizer.encode(denoiser.mode, special=True) for denoiser in SMALL]
    parts = [
        objective.part(number).prepare(table, tokenizer, WINDOW - len(mode))
        for number, mode in enumerate(modes)
    ]
    expected = []
    for row in range(len(texts)):
        indices = [i for i in row_examples if examples.rows[i] == row]
        if not indices:
            continue
        (number,) = {
            number
            for number, mode in enumerate(modes)
            if all(row_examples[i].tokens[1 : 1 + len(mode)] == mode for i in indices)
        }
        mode, part = modes[number], parts[number]
        expected += [(mode, part, i) for i in np.flatnonzero(part.rows == row) if part.lengths[i]]
    for index, (mode, part, i) in zip(sorted(row_examples), expected, strict=True):
        piece, size = part.piece(i, 0, int(part.lengths[i])), len(mode)
        example = row_examples[index]
        assert example.tokens == [*piece.tokens[:1], *mode, *piece.tokens[1:]]
        assert example.targets == [*mode, *piece.targets]
        assert example.weights == [0.0] * size + piece.weights.tolist()
        assert example.prefix == [True] * size + piece.prefix.tolist()
        assert example.targets[:-1] == example.tokens[1:]


def test_documents_share_denoisers_by_weight_and_the_seed_alone_decides():
    tokenizer = cases.tokenizer()
    table = cases.table([f"some words {n}" for n in range(2000)], tokenizer)

    def choices(seed):
        examples = UL2(SMALL, seed=seed).prepare(table, tokenizer, WINDOW)
        return [tuple(examples.piece(i, 0, 4).tokens[1:3]) for i in range(len(examples))]

    first = choices(0)
    assert first == choices(0) != choices(1)
    _, counts = np.unique(first, axis=0, return_counts=True)
    # Three standard deviations of 2,000 draws are at most 0.034 of them.
    np.testing.assert_allclose(sorted(counts / 2000), [0.25, 0.25, 0.5], atol=0.034)


def test_unfit_denoisers_are_refused():
    tokenizer = cases.tokenizer()
    table = cases.table(["some words"], tokenizer)
    with pytest.raises(ValueError, match="at least one"):
        UL2(())
    with pytest.raises(ValueError, match="rate must be between 0 and 1"):
        UL2((Denoiser("[R]", 1.5, 3.0),))
    with pytest.raises(ValueError, match="cannot be told apart"):
        UL2((Denoiser("[R]"), Denoiser("[R]]"))).prepare(table, tokenizer, WINDOW)
    with pytest.raises(ValueError, match="no room for two tokens"):
        UL2(SMALL).prepare(table, tokenizer, 7)
