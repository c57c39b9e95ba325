"""The algebra of axes: what combinators give, in which order, and what they refuse."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.studies import axis, chain, product, sample, zipped

values = st.lists(st.integers(0, 99), min_size=1, max_size=5, unique=True)


@given(values, values, values)
def test_product_is_associative_and_has_every_combination_once(a, b, c):
    x, y, z = axis("a", *a), axis("b", *b), axis("c", *c)
    left, right = product(product(x, y), z), product(x, product(y, z))
    assert left == right == product(x, y, z)
    assert [tuple(point.values()) for point in left] == [(i, j, k) for i in a for j in b for k in c]


@given(values, values)
def test_chain_keeps_order_and_refuses_a_point_twice(a, b):
    if set(a) & set(b):
        with pytest.raises(ValueError, match="twice"):
            chain(axis("a", *a), axis("a", *b))
    else:
        assert [point["a"] for point in chain(axis("a", *a), axis("a", *b))] == a + b


@given(values, st.integers(0, 5))
def test_zipped_pairs_values_and_undoes_nothing(a, shift):
    both = zipped(axis("a", *a), axis("b", *(n + shift for n in a)))
    assert [(point["a"], point["b"] - shift) for point in both] == [(n, n) for n in a]


@given(values, st.integers(0, 3), st.data())
def test_a_sample_is_drawn_once_for_a_seed_without_repetition_and_in_order(a, seed, data):
    axes = product(axis("a", *a), axis("b", 1, 2))
    count = data.draw(st.integers(1, len(axes)))
    subset = sample(count, axes, seed)
    assert subset == sample(count, axes, seed) and len(subset) == count
    places = [axes.points.index(point) for point in subset]
    assert places == sorted(set(places))


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: axis("a"), "at least one value"),
        (lambda: axis("a", 1, 1), "twice"),
        (lambda: product(axis("a", 1), axis("a", 2)), "two axes set 'a'"),
        (lambda: zipped(axis("a", 1, 2), axis("b", 1)), r"equally long, not \[1, 2\]"),
        (lambda: chain(axis("a", 1), axis("b", 1)), "same keys"),
        (lambda: sample(3, axis("a", 1, 2)), "cannot draw 3 of 2"),
    ],
)
def test_what_makes_no_grid_is_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
