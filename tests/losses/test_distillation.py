"""Distillation: torch's KL over the whole vocabulary, and invariants of the step."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import methods, tree
from research import step as stepping
from research.batch import Batch
from research.losses import CrossEntropy, Distillation
from research.losses.distillation import top_tokens
from research.losses.weighted import loss_sums
from research.methods import Full, LoRA
from tests.helpers import tiny
from tests.helpers.two_steps import assert_same_run, run

VOCABULARY = tiny.CONFIG.vocabulary
train_step = jax.jit(stepping.train_step, static_argnames="step_config")


@functools.partial(jax.jit, static_argnames="top_k")
def _teach(teacher, batch, top_k):
    hidden = stepping.last_hidden(teacher, batch, None)
    return top_tokens(teacher, hidden, None, top_k, VOCABULARY)


def taught_batch(top_k: int, rows: int = 8) -> Batch:
    """A batch with what another model says of it."""
    batch = tiny.batch(rows)
    tokens, log_probs = _teach(tiny.shaken(tiny.model(seed=5), size=0.3), batch, top_k)
    return dataclasses.replace(
        batch, teacher_tokens=np.asarray(tokens), teacher_log_probs=np.asarray(log_probs)
    )


def taught(loss):
    return taught_batch(loss.top_k)


def random_logits(shape=(2, 5), seed=0):
    """Logits [B,C,V] of a student and a teacher, and targets [B,C]."""
    random = np.random.default_rng(seed)
    student, teacher = random.normal(0, 3, (2, *shape, VOCABULARY)).astype(np.float32)
    return student, teacher, random.integers(0, VOCABULARY, shape)


def columns(teacher, targets, top_k):
    """Columns of a batch with the teacher's tokens, by sorting all of them."""
    log_probs = np.asarray(jax.nn.log_softmax(teacher.astype(np.float64)))
    tokens = np.argsort(-log_probs)[..., :top_k].astype(np.int32)
    top = np.take_along_axis(log_probs, tokens, -1)
    rest = np.log(np.maximum(1 - np.exp(top).sum(-1, keepdims=True), 1e-30))
    none = np.zeros(targets.shape, np.int32)
    log_probs = np.concatenate([top, rest], -1).astype(np.float32)
    return Batch(
        none, targets, np.ones(none.shape, np.float32), none, none,
        teacher_tokens=tokens, teacher_log_probs=log_probs,
    )  # fmt: skip


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("alpha", [1.0, 0.3])
def test_with_the_whole_vocabulary_it_is_torchs_kl_and_cross_entropy(alpha, temperature):
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    student, teacher, targets = random_logits()
    logits = torch.tensor(student, dtype=torch.float64, requires_grad=True)
    soft = [
        functional.log_softmax(x / temperature, -1)
        for x in (logits, torch.tensor(teacher).double())
    ]
    kl = functional.kl_div(*soft, reduction="none", log_target=True).sum(-1)
    nll = functional.cross_entropy(logits.flatten(0, 1), torch.tensor(targets).flatten())
    expected = alpha * temperature**2 * kl.mean() + (1 - alpha) * nll
    (gradient,) = torch.autograd.grad(expected, logits)
    loss = Distillation(top_k=VOCABULARY, alpha=alpha, temperature=temperature)
    batch = columns(teacher, targets, VOCABULARY)
    value, slopes = jax.value_and_grad(lambda x: jnp.mean(loss.token_losses(x, batch).loss))(
        student
    )
    # sums over 64 tokens in float32, against float64: 1e-6 each
    np.testing.assert_allclose(value, expected.item(), rtol=1e-5)
    # as above; the largest slopes are about 0.1
    np.testing.assert_allclose(slopes, gradient.numpy(), atol=1e-6)
    assert np.abs(gradient.numpy()).max() > 1e-2


def test_the_rest_of_the_vocabulary_is_one_outcome():
    """Against numpy in float64; also of a student that nearly rules the rest out."""
    student, teacher, targets = random_logits()
    batch = columns(teacher, targets, top_k=4)
    student[0] = np.where(np.arange(VOCABULARY) < 60, student[0], -40)
    np.put_along_axis(student[0], batch.teacher_tokens[0].astype(int), 5.0, axis=-1)
    loss = Distillation(top_k=4, alpha=1.0)

    def outcomes(logits):
        probs = np.exp(logits - logits.max(-1, keepdims=True))
        probs /= probs.sum(-1, keepdims=True)
        top = np.take_along_axis(probs, batch.teacher_tokens, -1)
        others = probs.copy()
        np.put_along_axis(others, batch.teacher_tokens, 0.0, axis=-1)
        return np.concatenate([top, others.sum(-1, keepdims=True)], -1), probs, others

    (p, probs, others), (q, *_) = (outcomes(x.astype(np.float64)) for x in (student, teacher))
    expected = np.sum(q * np.log(q / p), -1)
    slope = probs - q[..., -1:] * others / p[..., -1:]
    top = np.take_along_axis(slope, batch.teacher_tokens, -1) - q[..., :-1]
    np.put_along_axis(slope, batch.teacher_tokens, top, axis=-1)
    losses = loss.token_losses(jnp.asarray(student), batch)
    slopes = jax.grad(lambda x: jnp.sum(loss.token_losses(x, batch).loss))(student)
    # sums over 64 tokens in float32, against float64: 1e-6 each
    np.testing.assert_allclose(losses.loss, expected, rtol=1e-5)
    # as above, of slopes of up to 1
    np.testing.assert_allclose(slopes, slope, atol=1e-5)
    # as above
    np.testing.assert_allclose(losses.metrics["top_k_mass"], q[..., :-1].sum(-1), rtol=1e-5)
    full = columns(teacher, targets, VOCABULARY)
    whole = Distillation(top_k=VOCABULARY, alpha=1.0).token_losses(jnp.asarray(student), full)
    # as above
    assert np.all(losses.loss >= 0) and np.all(losses.loss <= whole.loss + 1e-5)


def test_a_teachers_tokens_are_its_likeliest_in_order_and_sum_to_one():
    model, batch = tiny.model(seed=5), tiny.batch(4)
    log_probs = np.asarray(jax.nn.log_softmax(tiny.logits(model, batch)))
    hidden = stepping.last_hidden(model, batch, None)
    for vocabulary in (VOCABULARY, 40):
        inside = log_probs[..., :vocabulary]
        inside = inside - np.log(np.exp(inside).sum(-1, keepdims=True))
        tokens, values = top_tokens(model, hidden, None, 6, vocabulary)
        expected = np.take_along_axis(inside, np.argsort(-inside)[..., :6], -1)
        # log-probabilities of a model of three layers by two programs
        np.testing.assert_allclose(values[..., :-1], expected, atol=1e-4)
        of_tokens = np.take_along_axis(inside, np.asarray(tokens), -1)
        np.testing.assert_allclose(of_tokens, expected, atol=1e-4)  # as above
        np.testing.assert_allclose(np.exp(values).sum(-1), 1, rtol=1e-5)  # seven float32


@pytest.mark.parametrize("method", [Full(), LoRA(rank=4)], ids=["full", "lora"])
@pytest.mark.parametrize("top_k", [5, VOCABULARY])
def test_chunks_of_one_pass_have_the_gradient_of_the_whole(top_k, method):
    model, batch = tiny.shaken(tiny.attached(method)), taught_batch(top_k)
    trainable, frozen = tree.partition(model, methods.trainable(model, method))
    loss = Distillation(top_k=top_k, alpha=0.7, temperature=1.5, chunk=5)

    def summed(trainable):
        full = tree.merge(model, trainable, frozen)
        hidden = stepping.last_hidden(full, batch, None)
        return loss_sums(loss, full, hidden, batch, None, None)

    def direct(trainable):
        logits = tiny.logits(tree.merge(model, trainable, frozen), batch)
        losses = loss.token_losses(logits, batch)
        sums = jax.tree.map(lambda x: jnp.sum(x * batch.weights), losses)
        return sums.loss, sums

    @jax.jit
    def both(trainable):
        return [jax.grad(each, has_aux=True)(trainable) for each in (summed, direct)]

    (gradients, sums), (expected, expected_sums) = both(trainable)
    # sums of 112 tokens in another order
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), sums, expected_sums)
    for name, gradient in expected.items():
        size = np.abs(gradient).max()
        # as above, through three layers, of the largest number of a leaf
        np.testing.assert_allclose(gradients[name], gradient, atol=1e-5 * size, err_msg=name)
        assert size > 0 or tree.is_attached(name)


@pytest.mark.heavy  # compiles five steps
@pytest.mark.parametrize(
    "settings",
    [
        {"accumulation_steps": 4},
        {"remat": "full"},
        {"mesh": (2, 2, 2)},
        {"mesh": (1, 4, 2)},
        {"mesh": (1, 2, 2, 2)},
    ],
    ids=str,
)
def test_micro_batches_mesh_and_remat_change_no_loss_and_no_weight(settings):
    loss = Distillation(top_k=5, alpha=0.7, temperature=1.5)
    assert_same_run(run(loss, taught, **settings), run(loss, taught))


def test_a_student_comes_nearer_and_other_numbers_share_its_program():
    loss = Distillation(teacher="runs/one", top_k=8, alpha=1.0)
    batch, model = taught_batch(8), tiny.model()
    names = methods.trainable(model, Full())
    config = stepping.StepConfig(names, loss=loss.without_numbers())
    hyper = dataclasses.replace(tiny.hyper(names), loss=loss.numbers)
    state, lines = stepping.init_state(model, config), []
    for _ in range(5):
        state, metrics = train_step(state, batch, hyper, config)
        lines.append({name: float(value) for name, value in metrics.items()})
    kl = [line["kl"] for line in lines]
    assert kl == sorted(kl, reverse=True) and kl[-1] < 0.8 * kl[0]
    np.testing.assert_allclose(kl, [line["loss"] for line in lines], rtol=1e-6)  # one product
    before = train_step._cache_size()
    other = Distillation(teacher="runs/other", top_k=8, alpha=0.2, temperature=3.0)
    hyper = dataclasses.replace(hyper, loss=other.numbers)
    assert other.without_numbers() == config.loss
    _, metrics = train_step(state, batch, hyper, config)
    assert train_step._cache_size() == before
    # T^2 and two shares
    expected = 0.2 * 9 * metrics["kl"] + 0.8 * metrics["nll"]
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)  # sums of 112 tokens


def test_beside_its_own_logits_it_keeps_none():
    """No array of the program's gradient has a row's logits of more columns than a chunk."""
    model, batch = tiny.model(), taught_batch(5)
    loss = Distillation(top_k=5, chunk=4)

    def summed(model):
        hidden = stepping.last_hidden(model, batch, None)
        return loss_sums(loss, model, hidden, batch, None, None)[0]

    sizes = _sizes(jax.make_jaxpr(jax.grad(summed))(model).jaxpr)
    rows = len(batch.tokens)
    assert (
        max(size for size, shape in sizes if shape[-1:] == (VOCABULARY,)) == 4 * rows * VOCABULARY
    )


def _sizes(jaxpr):
    for equation in jaxpr.eqns:
        yield from ((v.aval.size, v.aval.shape) for v in equation.outvars)
        for inner in jax.core.jaxprs_in_params(equation.params):
            yield from _sizes(inner)


def test_cross_entropy_beside_a_teacher_reads_nothing_of_it():
    batch = taught_batch(5)
    plain = dataclasses.replace(batch, teacher_tokens=None, teacher_log_probs=None)
    model, hidden = tiny.model(), jnp.ones((*batch.tokens.shape, tiny.CONFIG.width))
    values = [loss_sums(CrossEntropy(), model, hidden, each, None, None) for each in (batch, plain)]
    assert jax.tree.all(jax.tree.map(lambda a, b: bool(a == b), *values))
