"""The loss in chunks of the vocabulary equals that in chunks of the sequence."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import sharding
from research.losses import sequence_chunks
from research.losses.cross_entropy import CrossEntropy
from tests.helpers import rounding, tiny

SETTINGS = {"label_smoothing": 0.1, "z_loss": 0.01}


@functools.partial(jax.jit, static_argnums=3)
def losses_and_gradients(model, hidden, batch, config):
    def loss(model, hidden):
        sums = sequence_chunks.summed_losses(
            model, hidden, batch.targets, batch.weights, None, config
        )
        return sums.loss, sums

    return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(model, hidden)


@pytest.mark.parametrize("shape", [{}, {"tie_embeddings": False}, {"logit_cap": 2.0}], ids=str)
@pytest.mark.parametrize("settings", [{}, SETTINGS], ids=["plain", "smoothed"])
@pytest.mark.parametrize("mesh", [None, (1, 2, 2, 2)], ids=["one device", "mesh"])
def test_chunks_of_the_vocabulary_give_the_sums_and_gradients_of_chunks_of_columns(
    shape, settings, mesh
):
    model, batch = tiny.model(tiny.config(**shape)), tiny.batch()
    hidden = jnp.asarray(np.random.default_rng(0).normal(size=(8, 16, 32)), jnp.float32)
    expected = losses_and_gradients(model, hidden, batch, CrossEntropy(**settings, chunk=5))
    config = CrossEntropy(**settings, vocabulary_chunks=4)
    if mesh is None:
        actual = losses_and_gradients(model, hidden, batch, config)
    else:
        with sharding.mesh_context(sharding.MeshConfig(*mesh).make(), sharding.RULES):
            actual = losses_and_gradients(model, hidden, batch, config)
            again = dataclasses.replace(config, vocabulary_chunks=0, chunk=6)
            columns = losses_and_gradients(model, hidden, batch, again)
        assert_close(columns, expected)
    assert_close(actual, expected)


def assert_close(actual, expected):
    # sums over width, vocabulary, and tokens, there and back
    check = functools.partial(rounding.assert_close, roundings=2 * (32 + 64 + 8 * 16))
    jax.tree.map(check, actual, expected)


def test_a_vocabulary_that_does_not_divide_is_refused():
    model, batch = tiny.model(), tiny.batch()
    with pytest.raises(ValueError, match="vocabulary of 64 does not divide into so many chunks"):
        sequence_chunks.summed_losses(
            model,
            jnp.zeros((8, 16, 32)),
            batch.targets,
            batch.weights,
            None,
            CrossEntropy(vocabulary_chunks=5),
        )
