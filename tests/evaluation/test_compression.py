import lzma
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research.evaluation.compression import (
    bits_per_byte,
    fit_bigram,
    fit_unigram,
    xz_bits_per_byte,
)

VOCABULARY, BEGIN, END = 9, 1, 2
corpora = st.lists(
    st.lists(st.integers(3, VOCABULARY - 1), max_size=12).map(np.array), min_size=1, max_size=8
).map(lambda documents: [document.astype(np.int32) for document in documents])


def _brute_force_bigram(documents, context, following):
    """Interpolated Kneser-Ney written from its definition, with dictionaries."""
    pairs = Counter()
    for document in documents:
        ids = [BEGIN, *document.tolist(), END]
        pairs.update(zip(ids[:-1], ids[1:], strict=True))

    def discount(counts):
        once, twice = (sum(c == k for c in counts) for k in (1, 2))
        return min(max(once / max(once + 2 * twice, 1), 0.05), 0.95)

    contexts_of = Counter(w for _, w in pairs)
    d = discount(contexts_of.values())
    kinds = len(contexts_of) / VOCABULARY
    lower = (max(contexts_of[following] - d, 0) + d * kinds) / len(pairs)
    after = {w: c for (v, w), c in pairs.items() if v == context}
    if not after:
        return lower
    d = discount(pairs.values())
    reserve = d * len(after) / sum(after.values())
    return max(after.get(following, 0) - d, 0) / sum(after.values()) + reserve * lower


@settings(deadline=None, max_examples=30)
@given(corpora)
def test_distributions_sum_to_one_for_every_context(documents):
    bigram = fit_bigram(documents, VOCABULARY, BEGIN, END)
    context, following = np.divmod(np.arange(VOCABULARY**2), VOCABULARY)
    table = bigram.probability(context, following).reshape(VOCABULARY, VOCABULARY)
    # sums over a vocabulary of nine in float64, and some hundred discounts
    np.testing.assert_allclose(table.sum(1), 1, rtol=1e-12)
    assert table.min() > 0
    unigram = fit_unigram(documents, VOCABULARY, END)
    assert unigram.probability.sum() == pytest.approx(1, rel=1e-12)  # as above
    assert unigram.probability.min() > 0


@settings(deadline=None, max_examples=20)
@given(corpora, corpora)
def test_bigram_equals_brute_force(documents, held_out):
    bigram = fit_bigram(documents, VOCABULARY, BEGIN, END)
    expected = [
        -sum(
            math.log(_brute_force_bigram(documents, v, w))
            for v, w in zip([BEGIN, *ids.tolist()], [*ids.tolist(), END], strict=True)
        )
        for ids in held_out
    ]
    # some hundred steps in float64
    np.testing.assert_allclose(bigram.nats(held_out), expected, rtol=1e-10)


def test_unigram_equals_discounted_frequencies_by_hand():
    # Tokens 3 3 3 4 4 5 and END: counts 3, 2, 1, 1, so d = 2 / (2 + 2 * 1) = .5 over 4 kinds.
    unigram = fit_unigram([np.array([3, 3, 4, 5, 3, 4])], VOCABULARY, END)
    floor = 0.5 * 4 / VOCABULARY
    expected = np.array([0, 0, 0.5, 2.5, 1.5, 0.5, 0, 0, 0]) + floor
    # a few steps in float64
    np.testing.assert_allclose(unigram.probability, expected / 7, rtol=1e-14)
    # as above
    np.testing.assert_allclose(
        unigram.nats([np.array([3]), np.array([], int)]),
        -np.log([unigram.probability[3] * unigram.probability[END], unigram.probability[END]]),
        rtol=1e-14,
    )


def test_bigram_beats_unigram_on_text_with_bigram_structure_and_nears_its_entropy():
    rng = np.random.default_rng(0)
    vocabulary = 43
    chain = 3 + rng.integers(0, 40, (vocabulary, 2))  # two equally likely successors each

    def sample(count):
        documents = []
        for _ in range(count):
            ids = [3]
            while len(ids) < 200:
                ids.append(chain[ids[-1], rng.integers(2)])
            documents.append(np.array(ids))
        return documents

    train, test = sample(100), sample(10)
    bigram = fit_bigram(train, vocabulary, BEGIN, END).nats(test).sum() / (10 * 201)
    unigram = fit_unigram(train, vocabulary, END).nats(test).sum() / (10 * 201)
    assert bigram < 1.1 * math.log(2)
    assert unigram > 2 * bigram


def test_unseen_tokens_and_contexts_cost_finite_nats():
    train = [np.array([3, 4] * 10)]
    unseen = [np.array([7, 8, 8, 7])]
    for model in (fit_unigram(train, VOCABULARY, END), fit_bigram(train, VOCABULARY, BEGIN, END)):
        (unseen_nats,), (observed_nats,) = model.nats(unseen), model.nats([np.array([3, 4, 3, 4])])
        assert np.isfinite(unseen_nats) and unseen_nats > 2 * observed_nats


def test_flat_tokens_with_offsets_equal_a_list_of_documents():
    documents = [np.array([3, 4, 5]), np.array([], int), np.array([5, 3])]
    flat, offsets = np.concatenate(documents).astype(int), np.array([0, 3, 3, 5])
    a = fit_bigram(documents, VOCABULARY, BEGIN, END)
    b = fit_bigram((flat, offsets), VOCABULARY, BEGIN, END)
    np.testing.assert_array_equal(a.nats(documents), b.nats((flat, offsets)))
    assert a.nats(documents).shape == (3,)


def test_bits_per_byte_counts_utf8_bytes():
    assert bits_per_byte(np.array([1.0, 2.0]) * math.log(2), ["é", "a"]) == pytest.approx(1.0)


def test_xz_reads_all_documents_at_once():
    rng = np.random.default_rng(0)
    digits = "".join(rng.choice(list("0123456789abcdef"), 20_000))
    assert 4 <= xz_bits_per_byte([digits]) < 4.4  # incompressible: 4 bits a digit
    assert xz_bits_per_byte([digits] * 8) < 0.6  # later copies cost next to nothing
    archive = len(lzma.compress(digits.encode() + b"\0", preset=9))
    assert xz_bits_per_byte([digits]) == pytest.approx(8 * archive / 20_000)


def test_bad_documents_are_refused_with_the_place():
    with pytest.raises(ValueError, match="document 1 holds token id 2"):
        fit_bigram([np.array([3]), np.array([4, END])], VOCABULARY, BEGIN, END)
    with pytest.raises(ValueError, match="document 0 holds token id 9"):
        fit_unigram([np.array([VOCABULARY])], VOCABULARY, END)
    with pytest.raises(ValueError, match="no documents"):
        fit_bigram([], VOCABULARY, BEGIN, END)
    with pytest.raises(ValueError, match="offsets must rise"):
        fit_unigram((np.array([3, 4]), np.array([0, 3])), VOCABULARY, END)
    with pytest.raises(ValueError, match="no text"):
        xz_bits_per_byte(["", ""])
