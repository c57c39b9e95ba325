"""Drawing the next token: what may be drawn, and how often."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.generation.sampling import Sampling, sample

V = 6
LOGITS = np.array([1.0, -0.5, 2.0, 0.0, 1.5, -2.0], np.float32)
DRAWS = 20_000


@jax.jit
def draw(logits, seed, temperature, top_k, top_p):
    keys = jax.random.split(jax.random.key(seed), len(logits))
    settings = (jnp.broadcast_to(each, len(logits)) for each in (temperature, top_k, top_p))
    return sample(logits, keys, *settings)


def frequencies(temperature=1.0, top_k=0, top_p=1.0):
    """Shares [V] of DRAWS draws from LOGITS."""
    rows = jnp.broadcast_to(LOGITS, (DRAWS, V))
    return np.bincount(draw(rows, 0, temperature, top_k, top_p), minlength=V) / DRAWS


def softmax(logits):
    return np.exp(logits) / np.exp(logits).sum()


rows_of_logits = st.lists(
    st.lists(st.integers(-40, 40), min_size=V, max_size=V, unique=True), min_size=3, max_size=3
).map(lambda rows: np.asarray(rows, np.float32) / 8)


@given(rows_of_logits, st.integers(0, 99))
def test_zero_temperature_top_1_and_a_tiny_top_p_are_greedy(logits, seed):
    best = logits.argmax(axis=1)
    # logits are 1/8 apart, so that a temperature of 1e-4 leaves one share of 1
    for settings in [(0.0, 0, 1.0), (3.0, 1, 1.0), (3.0, 0, 1e-6), (1e-4, 0, 1.0), (0.0, 3, 0.5)]:
        assert np.array_equal(draw(logits, seed, *settings), best), settings


@given(rows_of_logits, st.integers(1, V), st.floats(0.05, 1), st.floats(0.2, 3))
def test_only_allowed_tokens_are_drawn(logits, top_k, top_p, temperature):
    for row in logits:
        samples = draw(jnp.broadcast_to(row, (64, V)), 1, temperature, top_k, top_p)
        order = np.argsort(-row)
        shares = softmax(row.astype(np.float64) / temperature)[order]
        likelier = np.cumsum(shares) - shares  # share of the tokens before each rank
        allowed_tokens = order[(likelier < top_p + 1e-5) & (np.arange(V) < top_k)]
        assert set(np.asarray(samples)) <= set(allowed_tokens)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_softmax(temperature):
    expected = softmax(LOGITS / temperature)
    error = 5 * np.sqrt(expected * (1 - expected) / DRAWS)  # five standard errors
    assert np.all(np.abs(frequencies(temperature) - expected) < error)


def test_top_k_and_top_p_cut_the_softmax_and_scale_what_is_left():
    shares = softmax(LOGITS)  # ranks: tokens 2, 4, 0, 3, 1, 5
    for settings, allowed_tokens in [
        ({"top_k": 3}, [2, 4, 0]),
        ({"top_p": 0.6}, [2, 4]),  # 0.46 is less, 0.46 + 0.28 is enough
        ({"top_k": 2, "top_p": 0.9}, [2, 4]),
        ({"top_k": 4, "top_p": 0.8}, [2, 4, 0]),
    ]:
        samples = frequencies(**settings)
        expected = np.where(np.isin(np.arange(V), allowed_tokens), shares, 0)
        expected /= expected.sum()
        assert np.all(samples[expected == 0] == 0), settings
        # five standard errors, as above, of a share of a half
        np.testing.assert_allclose(samples, expected, rtol=0, atol=5 * 0.5 / DRAWS**0.5)


def test_bad_settings_are_refused():
    for bad in ({"temperature": -1.0}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.1}):
        with pytest.raises(ValueError, match="must not be negative, top_p .* must lie in"):
            Sampling(**bad)
