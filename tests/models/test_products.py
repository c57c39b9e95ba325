"""The written-out products and their gradients against JAX's own."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.models import products
from research.models.products import matmul, matmul_transposed, scale_features
from tests.helpers import rounding

# odd and even rows; wide, square and thin weights: every case of the gradient on CPU
ROWS = st.sampled_from([1, 5, 6, 48])
SIZES = st.sampled_from([(4, 4), (8, 64), (64, 8), (128, 2)])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("transpose", [False, True])
@given(rows=ROWS, sizes=SIZES)
def test_product_and_gradients_equal_jaxs(dtype, transpose, rows, sizes):
    random = np.random.default_rng(0)
    x = jnp.asarray(random.normal(size=(2, rows, sizes[0])), dtype)
    kernel = jnp.asarray(random.normal(size=sizes), jnp.float32)
    dy = jnp.asarray(random.normal(size=(2, rows, sizes[1])), jnp.float32)

    def ours(x, kernel):
        if transpose:
            return jnp.sum(dy * matmul_transposed(x, kernel.T, jnp.float32))
        return jnp.sum(dy * matmul(x, kernel, jnp.float32))

    def plain(x, kernel):
        kernel = kernel.astype(dtype).astype(jnp.float32)
        return jnp.sum(dy * jnp.einsum("bti,io->bto", x.astype(jnp.float32), kernel))

    actual = jax.jit(jax.value_and_grad(ours, (0, 1)))(x, kernel)
    expected = jax.jit(jax.value_and_grad(plain, (0, 1)))(x, kernel)
    assert actual[1][0].dtype == x.dtype and actual[1][1].dtype == jnp.float32
    inputs, outputs = sizes
    terms = 2 * rows * inputs * outputs  # normal numbers of either sign: their sum is sqrt(terms)
    count = inputs + 2 * rows * outputs
    rounding.assert_close(actual[0], expected[0], roundings=count, scale=terms**0.5)
    gradients_close(actual[1], expected[1], dtype, max(outputs, 2 * rows))


def gradients_close(actual, expected, dtype, terms):
    # in bfloat16 the gradient that comes in is rounded, and the one that goes out
    terms, unit = (terms, rounding.FLOAT32) if dtype == "float32" else (2, rounding.BFLOAT16)
    check = functools.partial(rounding.assert_close, roundings=terms, unit=unit)
    jax.tree.map(check, actual, expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_scaled_outputs_and_gradients_equal_jaxs(dtype, platform, monkeypatch):
    monkeypatch.setattr(products.sharding, "platform", lambda: platform)  # their gradients differ
    random = np.random.default_rng(0)
    y = jnp.asarray(random.normal(size=(2, 9, 6)), dtype)
    factor = jnp.asarray(random.normal(size=6), jnp.float32)
    dy = jnp.asarray(random.normal(size=y.shape), jnp.float32)

    def weighted_sum(function, y, factor):
        return jnp.sum(dy * function(y, factor))

    def plain(y, factor):
        return y.astype(jnp.float32) * factor

    value_and_grad = jax.value_and_grad(weighted_sum, (1, 2))
    actual, expected = (value_and_grad(f, y, factor) for f in (scale_features, plain))
    assert actual[1][0].dtype == y.dtype and actual[1][1].dtype == jnp.float32
    # a factor that bfloat16 would round to 1
    assert (scale_features(jnp.full(6, 1.5, dtype), jnp.full(6, 1.003)) > 1.5).all()
    # each number is rounded in its type, then their sum, of either sign, in float32
    unit = rounding.FLOAT32 if dtype == "float32" else rounding.BFLOAT16
    limit = rounding.bound(1, unit=unit) + rounding.bound(y.size)
    assert abs(actual[0] - expected[0]) < limit * y.size**0.5
    gradients_close(actual[1], expected[1], dtype, 2 * 9)
