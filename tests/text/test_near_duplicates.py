"""Near-duplicate clusters against brute force over Python sets."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research.text.near_duplicates import clusters, nearest_similarity, shingles

# Few distinct words, so that random texts do share shingles.
_texts = st.lists(
    st.lists(st.sampled_from(["a", "b", "c", "d"]), max_size=12).map(" ".join), max_size=9
)
_thresholds = st.sampled_from([0.2, 0.5, 0.75, 1.0])
_measures = st.sampled_from(["jaccard", "containment"])


def _similarity(left: str, right: str, measure: str) -> float:
    a, b = shingles(left, 3), shingles(right, 3)
    return len(a & b) / (len(a | b) if measure == "jaccard" else min(len(a), len(b)))


def _brute_force(texts: list[str], threshold: float, measure: str) -> list[int]:
    """Cluster numbers by merging any two clusters that hold a similar pair."""
    number = list(range(len(texts)))
    for i in range(len(texts)):
        for j in range(i):
            if _similarity(texts[i], texts[j], measure) >= threshold:
                low, high = sorted((number[i], number[j]))
                number = [low if n == high else n for n in number]
    order = {n: k for k, n in enumerate(dict.fromkeys(number))}
    return [order[n] for n in number]


@settings(max_examples=60, deadline=None)
@given(_texts, _thresholds, _measures)
def test_clusters_are_the_connected_components_of_all_similar_pairs(texts, threshold, measure):
    cluster_ids = clusters(texts, threshold, size=3, measure=measure)
    assert cluster_ids.dtype == np.int64
    assert cluster_ids.tolist() == _brute_force(texts, threshold, measure)


@settings(max_examples=30, deadline=None)
@given(_texts, _thresholds, st.randoms(use_true_random=False))
def test_clusters_do_not_depend_on_the_order_of_texts(texts, threshold, random):
    order = list(range(len(texts)))
    random.shuffle(order)
    before = clusters(texts, threshold, size=3)
    after = clusters([texts[i] for i in order], threshold, size=3)
    together = before[order][:, None] == before[order][None, :]
    assert np.array_equal(together, after[:, None] == after[None, :])


@settings(max_examples=60, deadline=None)
@given(_texts, _texts, _measures)
def test_nearest_similarity_equals_brute_force(queries, references, measure):
    best, index = nearest_similarity(queries, references, size=3, measure=measure)
    for query, similarity, reference in zip(queries, best, index, strict=True):
        expected = max((_similarity(query, r, measure) for r in references), default=0.0)
        assert similarity == pytest.approx(expected)
        if similarity > 0:
            assert _similarity(query, references[reference], measure) == pytest.approx(expected)
        else:
            assert reference == -1


def test_a_poem_in_a_collection_is_found_by_containment_only():
    poem = " ".join(f"word{i}" for i in range(50))
    collection = poem + " " + " ".join(f"other{i}" for i in range(500))
    assert clusters([poem, collection], 0.5, measure="containment").tolist() == [0, 0]
    assert clusters([poem, collection], 0.5, measure="jaccard").tolist() == [0, 1]


def test_case_and_punctuation_do_not_matter_and_blocks_meet():
    # 600 rows: three blocks of the blocked product.
    texts = [f"Some NOTICE, number {i // 2} of the whole series {i // 2}." for i in range(600)]
    texts[1::2] = [text.lower().replace(",", "") for text in texts[1::2]]
    assert clusters(texts, 1.0).tolist() == [i // 2 for i in range(600)]


def test_bad_threshold_and_measure_are_refused():
    with pytest.raises(ValueError, match="threshold must be in"):
        clusters(["a"], 0.0)
    with pytest.raises(ValueError, match="unknown measure 'cosine'"):
        clusters(["a"], 0.5, measure="cosine")  # type: ignore[arg-type]
