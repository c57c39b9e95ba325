"""Drawing the next token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.generation.sampling import Sampling, sample

V, ROWS = 12, 400
LOGITS = jnp.asarray(np.random.default_rng(0).normal(size=V) * 2, jnp.float32)
KEYS = jax.random.split(jax.random.key(0), ROWS)
draw = jax.jit(lambda t, k, p: sample(jnp.tile(LOGITS, (ROWS, 1)), KEYS, t, k, p))


@given(k=st.integers(1, V), p=st.floats(0.01, 1.0), temperature=st.floats(0.1, 3.0))
def test_only_allowed_tokens_are_drawn(k, p, temperature):
    drawn = set(np.asarray(draw(temperature, k, p)).tolist())
    order = np.argsort(-LOGITS)
    share = np.asarray(jax.nn.softmax(LOGITS / temperature))[order]
    within = max(1, int(np.sum(np.cumsum(share) - share < p - 1e-4)) + 1)  # rounding at the edge
    assert drawn <= set(order[: min(k, within)].tolist())


@pytest.mark.parametrize("numbers", [(0.0, 0, 1.0), (1.0, 1, 1.0), (1.0, 0, 1e-6)])
def test_no_temperature_one_token_or_a_tiny_share_is_greedy(numbers):
    assert set(np.asarray(draw(*numbers)).tolist()) == {int(jnp.argmax(LOGITS))}


def test_frequencies_are_the_softmax():
    keys = jax.random.split(jax.random.key(1), 20_000)
    drawn = jax.jit(sample)(jnp.tile(LOGITS, (20_000, 1)), keys, 1.5, 0, 1.0)
    found = np.bincount(np.asarray(drawn), minlength=V) / 20_000
    np.testing.assert_allclose(found, jax.nn.softmax(LOGITS / 1.5), atol=0.015)


def test_senseless_numbers_are_refused():
    for wrong in (dict(temperature=-1.0), dict(top_k=-1), dict(top_p=0.0), dict(top_p=1.5)):
        with pytest.raises(ValueError, match="sampling: temperature"):
            Sampling(**wrong)
