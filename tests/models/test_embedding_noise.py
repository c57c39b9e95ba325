"""Uniform noise on embeddings in training (Jain 2023, NEFTune, arXiv:2310.05914)."""

import dataclasses

import jax
import numpy as np
import pytest

from research import step as stepping
from research.models.sites import Context
from tests.helpers import rounding, tiny

ALPHA = 5.0
train_step = jax.jit(stepping.train_step, static_argnames="step_config")


def hyper(alpha=ALPHA, names=("embedding/kernel",)):
    return dataclasses.replace(tiny.hyper(names), embedding_noise=np.float32(alpha))


def noise_at(step, shape=tiny.CONFIG, batch=None):
    """[B,S,D]: what a training pass adds to the embeddings."""
    batch = batch or tiny.batch(documents=3)
    rows, model = np.arange(len(batch.tokens)), tiny.model(shape)
    context = stepping.row_context(batch, hyper(), np.int32(step), rows)
    plain = model.embedding(batch.tokens, np.float32, Context())
    return np.asarray(model.embedding(batch.tokens, np.float32, context.at("embedding")) - plain)


def test_noise_is_uniform_up_to_alpha_over_the_root_of_its_documents_size():
    batch, noise = tiny.batch(documents=3), noise_at(0)
    for row, segments in enumerate(batch.segments):
        for segment in np.unique(segments):
            mine = noise[row][segments == segment]
            bound = ALPHA / np.sqrt(mine.size)  # L tokens of D numbers
            # as plain embeddings of size 1 are added and taken off again
            assert np.abs(mine).max() <= bound + rounding.bound(2)
            assert np.abs(mine).max() > 0.9 * bound
            if segment:  # the mean of so many uniform numbers, within six of its own deviations
                assert abs(mine.mean()) < 6 * bound / np.sqrt(3 * mine.size)


def test_noise_is_another_one_in_each_row_and_step():
    first, second = noise_at(0), noise_at(1)
    assert np.abs(first - second).max() > 0.1 and np.abs(first[0] - first[1]).max() > 0.1
    assert np.array_equal(first, noise_at(0))


def test_noise_grows_with_a_familys_scale_of_embeddings():
    scaled = noise_at(0, tiny.config(embedding_scale=2.0))
    rounding.assert_close(scaled, 2 * noise_at(0), roundings=4, scale=4.0)


def test_a_token_is_its_embedding_in_evaluation():
    model, batch = tiny.model(), tiny.batch()
    with pytest.raises(ValueError, match="noise on embeddings needs random keys"):
        model.embedding(batch.tokens, np.float32, Context(noise=np.ones((8, 16), np.float32)))
    text = str(jax.make_jaxpr(stepping.eval_step)(model, batch))
    assert "random_bits" not in text


def test_noise_does_not_depend_on_micro_batches():
    model, losses = tiny.model(), []
    names = tuple(stepping.tree.flatten(model))
    for accumulation_steps in (1, 2):
        plan = stepping.StepConfig(names, accumulation_steps=accumulation_steps)
        state = stepping.init_state(model, plan)
        _, metrics = train_step(state, tiny.batch(), hyper(names=names), plan)
        losses.append(float(metrics["loss"]))
    rounding.assert_close(losses[0], losses[1], roundings=tiny.ROUNDINGS)
    _, plain = train_step(state, tiny.batch(), tiny.hyper(names), plan)
    # noise of 5 / sqrt(8 * 32) on embeddings of size 1; rounding of a loss is a thousandth of this
    assert abs(losses[0] - float(plain["loss"])) > 1e-3
