"""Losses of rewards: their formulas, by another library's derivatives."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from research.losses import GRPO, Reinforce
from tests.helpers import answers

CLIPS = [GRPO(), GRPO(clip=0.1, clip_high=0.4)]


def rollouts(seed=3):
    """Two rows of answers with an advantage each, of both signs, near and far from the start."""
    batch, random = answers.batch(), np.random.default_rng(seed)
    values = np.where(batch.roles == 1, 0.8, -1.3).astype(np.float32)
    nll = -batch.reference + random.normal(0, 0.3, batch.tokens.shape)
    return dataclasses.replace(batch, values=values, roles=None), nll


def grpo(loss, nll, batch):
    """The mean over tokens by TRL's formula (`grpo_trainer`, `loss_type="bnpo"`, beta 0)."""
    torch = pytest.importorskip("torch")
    reference, advantage, mask = (
        torch.tensor(np.asarray(x), dtype=torch.float64)
        for x in (batch.reference, batch.values, batch.weights)
    )
    ratio = torch.exp(-nll - reference)
    limited = torch.clamp(ratio, 1 - loss.clip, 1 + loss.clip_high)
    each = -torch.min(ratio * advantage, limited * advantage)
    return (each * mask).sum() / mask.sum()


@pytest.mark.parametrize("loss", CLIPS, ids=str)
def test_value_and_gradient_are_those_of_trls_formula(loss):
    torch = pytest.importorskip("torch")
    batch, numbers = rollouts()
    nll = torch.tensor(numbers, dtype=torch.float64, requires_grad=True)
    expected = grpo(loss, nll, batch)
    (gradient,) = torch.autograd.grad(expected, nll)
    counts = loss.count(batch)
    weights, value, metrics = loss.weigh(jnp.asarray(numbers, jnp.float32), batch, counts)
    size = float(counts.divisor)
    # sums of 20 numbers of about 1 in float32, against float64: 1e-6 each
    np.testing.assert_allclose(value / size, expected.item(), atol=1e-5)
    # as above; the largest weights are about 1
    np.testing.assert_allclose(weights / size, gradient.numpy(), atol=1e-5)
    assert size == batch.weights.sum() and not np.any(weights[batch.weights == 0])
    assert 0 < metrics["clipped_share"] / size < 1 and metrics["kl"] > 0


def test_where_the_model_is_still_the_one_that_drew_the_gradient_is_that_of_reinforce():
    batch, _ = rollouts()
    nll = jnp.asarray(-batch.reference)
    own, other = (
        loss.weigh(nll, batch, loss.count(batch)).weights for loss in (GRPO(), Reinforce())
    )
    np.testing.assert_allclose(own, other, rtol=1e-6)  # one product each
    np.testing.assert_array_equal(other, batch.values * batch.weights)


def test_a_prompt_that_the_start_found_impossible_overflows_nothing():
    batch, nll = rollouts()
    reference = np.where(batch.weights > 0, batch.reference, -1e4).astype(np.float32)
    batch, loss = dataclasses.replace(batch, reference=reference), GRPO()
    weights, value, _ = loss.weigh(jnp.asarray(nll, jnp.float32), batch, loss.count(batch))
    assert np.isfinite(weights).all() and np.isfinite(value)
