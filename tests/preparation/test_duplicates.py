"""Duplicates with known truth are found on Beam, whatever the order and the workers."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research.preparation import minhash, stages
from research.preparation.config import NearDuplicates
from research.preparation.pipeline import make_plan
from research.text import near_duplicates
from tests.preparation import corpus

pytest.importorskip("apache_beam", reason="tools/setup prepare")
from research.preparation.runner import Runner  # noqa: E402

pytestmark = pytest.mark.heavy
ONE = ("--direct_num_workers=1",)
ORIGINALS = [corpus.prose(seed, 150) for seed in range(12)]
# A change of one word touches five shingles of 146: Jaccard 0.93, 0.87 and 0.4.
NEAR = [corpus.replace_words(text, 1, 1) for text in ORIGINALS[:4]]
NEARER = [corpus.replace_words(text, 2, 2) for text in ORIGINALS[:2]]
FAR = [corpus.replace_words(text, 3, 17) for text in ORIGINALS[4:8]]
SAME = ["  ".join(text.upper().split()) for text in ORIGINALS[8:10]]


def _prepare(folder, texts, **settings):
    config = corpus.config(folder, {"made": texts}, **settings)
    numbers, _ = corpus.prepare(config, folder / "out", Runner(ONE))
    kept_rows = [int(name.partition("/d")[2]) for name in corpus.kept_names(folder / "out")]
    return config, numbers["train"]["made"], kept_rows


def _marks(folder, config, name):
    stage_plan = make_plan(config, folder / "out")
    files = [stage_plan.stages[name].file(each.number) for each in stage_plan.ranges]
    return np.concatenate([stages.load(file) for file in files])


def test_copies_go_and_the_first_stays(tmp_path):
    texts = [*ORIGINALS, *NEAR, *NEARER, *FAR, *SAME]
    config, numbers, kept_rows = _prepare(
        tmp_path, texts, exact_duplicates=True, near_duplicates=NearDuplicates()
    )
    assert kept_rows == [*range(12), *range(18, 22)]
    assert numbers["removed"] == {"exact": {"exact": 2}, "near": {"near": 6}}
    assert numbers["kept"]["documents"] == 16 and numbers["documents"] == 24
    exact, near = (_marks(tmp_path, config, name) for name in ("exact", "near"))
    assert exact[22:].tolist() == [8, 9] and (exact[:22] == -1).all()
    assert near[12:18].tolist() == [0, 1, 2, 3, 0, 1] and (near[18:] == -1).all()


def test_the_order_of_documents_does_not_matter_to_what_is_left(tmp_path):
    texts = [*ORIGINALS, *NEAR, *NEARER, *FAR, *SAME]
    families = [*range(12), *range(4), *range(2), *range(20, 24), 8, 9]
    for seed in (1, 2):
        order = random.Random(seed).sample(range(len(texts)), len(texts))
        folder = tmp_path / str(seed)
        folder.mkdir()
        _, _, kept_rows = _prepare(
            folder,
            [texts[i] for i in order],
            exact_duplicates=True,
            # Two changed copies of one text have 0.81, and estimates scatter by 0.035.
            near_duplicates=NearDuplicates(threshold=0.7),
            rows=5,
        )
        marked_rows = [families[order[i]] for i in kept_rows]
        assert sorted(marked_rows) == sorted(set(families))
        # Of every family its first document.
        shuffled_families = [families[i] for i in order]
        assert kept_rows == sorted(shuffled_families.index(family) for family in set(families))


def test_what_is_found_is_what_the_exact_similarity_says(tmp_path):
    random = np.random.default_rng(0)
    texts = [corpus.prose(seed, 100) for seed in range(150)]
    for seed in range(150):
        texts.append(
            corpus.replace_words(texts[random.integers(150)], seed, int(random.integers(0, 9)))
        )
    config, _, _ = _prepare(tmp_path, texts, near_duplicates=NearDuplicates(), rows=64)
    marks = _marks(tmp_path, config, "near")
    sets = [near_duplicates.shingles(text) for text in texts]
    exact = np.asarray([[len(a & b) / len(a | b) for b in sets] for a in sets])
    marked_rows = np.flatnonzero(marks >= 0)
    pairs = exact[marked_rows, marks[marked_rows]]
    # Three standard deviations of the estimate below the threshold.
    assert (marks[marked_rows] < marked_rows).all() and pairs.min() > 0.8 - 3 * 0.035
    assert (pairs >= 0.8).mean() > 0.85
    has_earlier = (np.tril(exact, -1) >= 0.8).any(axis=1)
    clear = (np.tril(exact, -1) >= 0.8 + 3 * 0.035).any(axis=1)
    assert (marks[has_earlier] >= 0).mean() > 0.8 and (marks[clear] >= 0).all()
    # No two that stay share a bucket and are alike.
    kept_rows = np.flatnonzero(marks < 0)
    assert (np.tril(exact[np.ix_(kept_rows, kept_rows)], -1) >= 0.8 + 3 * 0.035).sum() == 0


def test_documents_without_words_are_like_no_other(tmp_path):
    texts = ["!!!", "???", "one", "two", "one two three", "one two three four"]
    _, _, kept_rows = _prepare(tmp_path, texts, near_duplicates=NearDuplicates())
    assert kept_rows == list(range(6))


@settings(max_examples=30)
@given(st.integers(0, 1000), st.integers(0, 12))
def test_signatures_estimate_the_jaccard_similarity(seed, changes):
    config = NearDuplicates(permutations=1024)
    one = corpus.prose(seed, 150)
    two = corpus.replace_words(one, seed, changes)
    sets = [near_duplicates.shingles(text) for text in (one, two)]
    exact = len(sets[0] & sets[1]) / len(sets[0] | sets[1])
    signed = [minhash.signature(minhash.shingle_hashes(t, 5), config) for t in (one, two)]
    error = 5 * np.sqrt(exact * (1 - exact) / 1024)
    # five standard deviations of the estimate, and rounding in float64
    assert np.mean(signed[0] == signed[1]) == pytest.approx(exact, abs=error + 1e-12)
    assert len(minhash.shingle_hashes(one, 5)) == len(sets[0])


def test_bands_find_nine_of_ten_at_the_threshold():
    for threshold in (0.7, 0.8, 0.9):
        number, size = minhash.band_shape(NearDuplicates(threshold=threshold))
        assert number * size <= 128
        assert 1 - (1 - threshold**size) ** number > 0.9


def test_large_buckets_are_compared_with_their_first_and_their_neighbours():
    records = np.zeros(10, minhash._BAND)
    records["hash"] = [5] * 8 + [6, 7]
    records["number"] = [*range(8), 20, 21]
    shuffled_records = np.random.default_rng(0).permutation(records)
    firsts = np.asarray([0, 4])
    grouped_pairs = list(
        minhash._candidate_pairs(
            firsts, (0, [shuffled_records[:3].tobytes(), shuffled_records[3:].tobytes()])
        )
    )
    pairs = {
        (key, *pair)
        for key, part in grouped_pairs
        for pair in np.frombuffer(part, minhash.PAIR).tolist()
    }
    expected_pairs = {(0, i) for i in range(1, 8)}
    expected_pairs |= {(i - d, i) for i in range(8) for d in range(1, 5) if i - d >= 0}
    assert pairs == {(int(first >= 4), first, later) for first, later in expected_pairs}
