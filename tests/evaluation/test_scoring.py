"""Likelihoods of answers and of text are those of plain forward passes."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from research import sharding
from research.batch import SHARED, Batch, bucket_length, longest_first
from research.data import token_cache as tokens
from research.data.pipeline import Pipeline
from research.evaluation import scoring
from research.evaluation.choice_task import ChoiceTask
from research.objectives.supervised import Supervised
from research.sharding import MeshConfig
from research.text import tokenizer as tokenizers
from research.training.heldout_loss import (
    bits_per_byte,
    heldout_loss,
    make_losses,
    make_score,
    open_heldout,
    row_nats,
)
from tests.helpers import rounding, tiny, tiny_run


@pytest.fixture(scope="module")
def rows():
    """Batches lie over all 8 devices."""
    return sharding.batch_sharding(MeshConfig().make(), sharding.RULES)


def likelihoods(model, questions, answers):
    """[N,C] nats: a row of its own for each question with each answer, plain positions."""
    pairs = [(q, a) for q in questions for a in answers]
    width = max(len(q) + len(a) for q, a in pairs)
    ids = np.zeros((len(pairs), width), np.int32)
    is_used = np.zeros((len(pairs), width), np.int32)
    for row, (question, answer) in enumerate(pairs):
        whole = [*question, *answer]
        ids[row, : len(whole)], is_used[row, : len(whole)] = whole, 1
    positions = np.broadcast_to(np.arange(width, dtype=np.int32), ids.shape)
    batch = Batch(ids, ids, is_used.astype(np.float32), is_used, positions)
    log_probs = np.asarray(jax.nn.log_softmax(jax.jit(tiny.logits)(model, batch)))
    totals = [
        sum(log_probs[row, len(question) + i - 1, token] for i, token in enumerate(answer))
        for row, (question, answer) in enumerate(pairs)
    ]
    return np.reshape(totals, (len(questions), len(answers)))


def choose(score, questions, answers):
    """[N,C] nats of every answer after every question."""
    return np.stack(scoring.score_options(score, questions, [answers] * len(questions), 8))


@pytest.mark.parametrize("attention", ["plain", "blocked"])
def test_choosing_scores_each_answer_as_a_forward_pass_of_its_own_does(rows, attention):
    model = tiny.shaken(tiny.model(tiny.config(attention=attention)), size=0.2)
    random = np.random.default_rng(1)

    def draw(length):
        return random.integers(1, tiny.CONFIG.vocabulary, length).tolist()

    questions = [draw(n) for n in (7, 1, 30, 12, 3, 9, 2, 18, 25, 5, 11)]  # a batch and a part
    answers = [draw(n) for n in (1, 4, 1, 9)]
    scores = choose(make_score(model, rows), questions, answers)
    expected = likelihoods(model, questions, answers)
    # a forward pass of 39 tokens at most, and a sum over 9
    roundings = rounding.forward_roundings(tiny.CONFIG, 39) + 9
    rounding.assert_close(scores, expected, roundings=roundings)
    assert np.ptp(expected, axis=0).min() > 0.1  # the question matters
    assert len(set(expected.argmax(axis=1))) > 1
    one_length = scoring.score_in_batches(
        make_score(model, rows), questions, [answers] * 11, 8, is_one_length=True
    )
    together = {number: each for part in one_length for number, each in part.items()}
    rounding.assert_close([together[n] for n in range(11)], expected, roundings=roundings)


def test_the_head_sees_the_targets_alone_and_gives_them_the_same_likelihoods(rows):
    """As many places as the fullest row has: others are filled up with places without a weight."""
    shape = (len(jax.devices()), 24)
    random = np.random.default_rng(0)
    tokens, targets = random.integers(1, 50, (2, *shape), np.int32)
    weights = (random.random(shape) < 0.2).astype(np.float32)
    places = np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape)
    batch = Batch(tokens, targets, weights, np.ones(shape, np.int32), places)
    most = int(weights.astype(bool).sum(1).max())
    losses = make_losses(tiny.shaken(tiny.model()), rows)
    every, few = losses(batch), losses(dataclasses.replace(batch, most_targets=most))
    for name in ("nll", "correct"):
        one, two = (np.asarray(getattr(each, name)) for each in (every, few))
        # the same sums of 32 products, perhaps in another order
        np.testing.assert_allclose(two * weights, one * weights, rtol=1e-5, atol=1e-6)
        assert np.count_nonzero(np.asarray(few.nll)) <= most * len(weights)


def test_a_row_shows_each_answer_the_question_and_itself_alone():
    answers = [[40, 2], [41, 42, 43, 2], [40, 41, 2]]
    tokens, targets, weights, segments, positions = scoring.choice_row([1, 5, 9], answers, 16)
    assert segments.tolist() == [SHARED] * 2 + [1] * 2 + [2] * 4 + [3] * 3 + [0] * 5
    assert tokens[:4].tolist() == [1, 5, 9, 40] and targets[2:4].tolist() == answers[0]
    assert positions[:8].tolist() == [0, 1, 2, 3, 2, 3, 4, 5]
    assert weights.tolist() == (segments > 0).astype(float).tolist()


def test_an_answer_does_not_depend_on_the_answers_beside_it(rows):
    model = tiny.shaken(tiny.model(), size=0.2)
    score = make_score(model, rows)
    questions, answers = [[3, 9, 4], [5, 6]], [[7, 1], [8], [2, 2, 1]]
    together = choose(score, questions, answers)
    backwards = choose(score, questions, answers[::-1])[:, ::-1]
    rounding.assert_close(together, backwards, roundings=tiny.ROUNDINGS)
    alone = [choose(score, questions, [answer])[:, 0] for answer in answers]
    rounding.assert_close(together, np.stack(alone, axis=1), roundings=tiny.ROUNDINGS)


def test_nothing_to_choose_from_is_refused(rows):
    for questions, answers in (([[1], []], [[1]]), ([[1]], [[]])):
        with pytest.raises(ValueError, match="no question and no option may be empty"):
            choose(lambda batch: batch.weights, questions, answers)


def test_a_uniform_model_needs_log2_of_the_vocabulary_for_a_token(world, rows):
    model = tiny.model(tiny_run.MODEL)
    model.embedding.kernel = nnx.Param(jnp.zeros((288, 16)), axes=("vocabulary", "embed"))
    tokenizer = tokenizers.load(world.folder / "tokenizer.json")
    data = Pipeline(world.data(), tokenizer, tokens.default_cache())
    heldout = open_heldout(data, "heldout", None)
    texts = [f"{n} roofs, red." for n in range(9)]
    count = sum(len(tokenizer.encode(text)) + 1 for text in texts)  # with each end-of-text
    losses = heldout_loss(make_score(model, rows), heldout)
    bits = math.log2(288) * count / sum(map(len, texts))
    # a logarithm, a sum in float32 over the 32 places of a row, the rest in float64
    rounding.assert_close(losses["heldout_bits_per_byte"], bits, roundings=1 + 32)
    rounding.assert_close(losses["heldout_loss"], math.log(288), roundings=1 + 32)
    with pytest.raises(ValueError, match="held-out text is empty"):
        bits_per_byte(1.0, 0)


def test_each_row_of_held_out_text_has_its_own_nats(world, rows):
    """Questions: only the answer's tokens count, whatever stands before them."""
    model = tiny.shaken(tiny.model(tiny_run.MODEL), size=0.2)
    tokenizer = tokenizers.load(world.folder / "tokenizer.json")
    data = Pipeline(world.questions(), tokenizer, tokens.default_cache())
    (part,) = open_heldout(data, "heldout", None)
    nats = row_nats(make_score(model, rows), part.batches())
    expected = []
    for batch in part.batches():
        log_probs = jax.nn.log_softmax(jax.jit(tiny.logits)(model, jax.tree.map(np.asarray, batch)))
        target_log_probs = np.take_along_axis(
            np.asarray(log_probs), batch.targets[..., None], axis=-1
        )[..., 0]
        expected += list(-(target_log_probs * batch.weights).sum(axis=1))
    assert len(nats) == 8 * len(part) and np.sum(nats > 0) == len(part.rows)
    rounding.assert_close(nats, expected, roundings=tiny_run.ROUNDINGS + 8)  # a sum over 8 tokens


def test_fewer_questions_are_the_same_ones_every_time(world):
    source = world.questions().sources[0]
    task = ChoiceTask(source, Supervised("{prompt}"), split="heldout")
    every = task.read()
    assert [each.row for each in every] == list(range(12))
    few = dataclasses.replace(task, max_questions=5).read()
    rows = [each.row for each in few]
    assert rows == sorted(set(rows)) and len(rows) == 5 and rows[-1] < 12
    assert few == [every[row] for row in rows]


def test_rows_are_padded_to_few_lengths_and_go_with_those_as_long():
    assert [bucket_length(n, longest=90) for n in (1, 64, 65, 90)] == [64, 64, 90, 90]
    assert [bucket_length(n) for n in (65, 97, 129, 300)] == [96, 128, 192, 384]
    assert [bucket_length(n, shortest=32) for n in (1, 33, 49)] == [32, 48, 64]
    assert list(longest_first([2, 9, 9, 4, 1], 2)) == [[1, 2], [3, 0], [4]]
