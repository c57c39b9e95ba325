"""Likelihood scores: the batches that they are read from mean what they should."""

import functools
import math

import jax
import numpy as np
import pytest

from research.batch import SHARED
from research.evaluation import scoring
from research.step import eval_step
from tests import tiny

QUESTIONS = [[1, 5, 9, 4], [1, 7], [1, 30, 31, 32, 33, 34, 35, 36, 4]]
ANSWERS = [[40, 2], [41, 42, 43, 2], [40, 41, 2]]


@functools.cache
def model(attention="plain"):
    return tiny.shaken(tiny.model(tiny.config(attention=attention)))


_eval = jax.jit(eval_step)


def score(batch, attention="plain"):
    return np.asarray(_eval(model(attention), batch).nll)


@pytest.mark.parametrize("attention", ["plain", "blocked"])
def test_choices_in_one_row_score_as_separate_passes(attention):
    found = scoring.choose(
        functools.partial(score, attention=attention), QUESTIONS, ANSWERS, batch_size=2
    )
    for i, question in enumerate(QUESTIONS):
        for j, answer in enumerate(ANSWERS):
            log = tiny.log_probabilities(model(), question + answer)
            told = [float(log[len(question) - 1 + n, t]) for n, t in enumerate(answer)]
            np.testing.assert_allclose(found.scores[i, j], sum(told), atol=1e-3)
    assert found.best.tolist() == np.argmax(found.scores, axis=1).tolist()


def test_a_row_shows_each_answer_the_question_and_itself_alone():
    tokens, targets, weights, segments, positions = scoring.choice_row([1, 5, 9], ANSWERS, 16)
    assert segments.tolist() == [SHARED] * 2 + [1] * 2 + [2] * 4 + [3] * 3 + [0] * 5
    assert tokens[:4].tolist() == [1, 5, 9, 40] and targets[2:4].tolist() == ANSWERS[0]
    assert positions[:8].tolist() == [0, 1, 2, 3, 2, 3, 4, 5]
    assert weights.tolist() == (segments > 0).astype(float).tolist()


def test_a_uniform_model_needs_log2_of_the_vocabulary_for_each_token():
    batch = tiny.batch()
    uniform = lambda batch: np.full(batch.tokens.shape, math.log(64))  # noqa: E731
    nats = scoring.row_nats(uniform, [batch, batch])
    assert nats.shape == (2 * len(batch.tokens),)
    bits = scoring.bits_per_byte(nats.sum(), text_bytes=100)
    assert bits == pytest.approx(6 * 2 * batch.weights.sum() / 100, rel=1e-5)
    with pytest.raises(ValueError, match="held-out text is empty"):
        scoring.bits_per_byte(1.0, 0)


def test_nothing_to_choose_is_refused():
    with pytest.raises(ValueError, match="at least one question and one answer"):
        scoring.choose(score, QUESTIONS, [[]], 2)
