"""Losses of preferences: TRL's formulas, and invariants of the step that they are trained with."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import methods, tree
from research import step as stepping
from research.batch import BAD, GOOD, MISMATCHED
from research.losses import DPO, IPO, KTO, LOSSES, ORPO, CrossEntropy, SimPO
from research.losses.sequence_chunks import summed_losses
from research.losses.weighted import loss_sums
from research.methods import Full, LoRA
from tests.helpers import answers, tiny
from tests.helpers.two_steps import assert_same_run, run

PAIRS = [DPO(beta=0.3), DPO(label_smoothing=0.2), IPO(beta=0.4), SimPO(), ORPO(beta=0.7)]
LABELLED = [KTO(beta=0.5), KTO(good_weight=1.5, bad_weight=0.5)]
KINDS = ("good", "bad", "good")
train_step = jax.jit(stepping.train_step, static_argnames="step_config")


def batch_of(loss, **settings):
    kinds = ("pairs",) if "pairs" in loss.example_kinds else KINDS
    return answers.batch(kinds=kinds, **settings)


def trl_loss(loss, nll, batch):
    """The mean loss over examples by TRL's formulas (1.10.0.dev0, commit f2cd577: `dpo_trainer`,
    `kto_trainer`, `orpo_trainer` and `cpo_trainer`), with the cross-entropy of ORPO over answers.

    Its code was read and is not called; tests/losses/test_trl.py asks its trainers themselves.
    """
    torch = pytest.importorskip("torch")
    log_sigmoid = torch.nn.functional.logsigmoid

    def of(role, values, join=True):
        parts = answers.sums(values, batch, role)
        return torch.stack([x for row in parts for x in row]) if join else parts

    reference = torch.tensor(np.asarray(batch.reference), dtype=torch.float64)
    ones = torch.ones_like(nll)
    if loss.kind == "kto":
        losses = []
        ratios = [of(r, -nll - reference, join=False) for r in (MISMATCHED, GOOD, BAD)]
        for other, good_ones, bad_ones in zip(*ratios, strict=True):
            kl = torch.stack(other).mean().detach().clamp(min=0)
            losses += [loss.good_weight * (1 - (loss.beta * (x - kl)).sigmoid()) for x in good_ones]
            losses += [loss.bad_weight * (1 - (loss.beta * (kl - x)).sigmoid()) for x in bad_ones]
        return torch.stack(losses).mean()
    good, bad = of(GOOD, -nll), of(BAD, -nll)
    sizes = of(GOOD, ones), of(BAD, ones)
    ratios = good - of(GOOD, reference), bad - of(BAD, reference)
    means = good / sizes[0], bad / sizes[1]
    if loss.kind == "dpo":
        delta = loss.beta * (ratios[0] - ratios[1])
        smooth = loss.label_smoothing
        return (-log_sigmoid(delta) * (1 - smooth) - log_sigmoid(-delta) * smooth).mean()
    if loss.kind == "ipo":
        delta = ratios[0] / sizes[0] - ratios[1] / sizes[1]
        return ((delta - 1 / (2 * loss.beta)) ** 2).mean()
    if loss.kind == "simpo":
        return -log_sigmoid(loss.beta * (means[0] - means[1] - loss.gamma / loss.beta)).mean()
    log1mexp = [torch.log(-torch.expm1(mean)) for mean in means]
    log_odds = (means[0] - means[1]) - (log1mexp[0] - log1mexp[1])
    return -good.sum() / sizes[0].sum() - (loss.beta * log_sigmoid(log_odds)).mean()


@pytest.mark.parametrize("loss", [*PAIRS, *LABELLED], ids=str)
def test_value_and_gradient_are_those_of_trl(loss):
    torch = pytest.importorskip("torch")
    batch = batch_of(loss)
    numbers = np.random.default_rng(1).uniform(0.5, 3, batch.tokens.shape)
    nll = torch.tensor(numbers, dtype=torch.float64, requires_grad=True)
    expected = trl_loss(loss, nll, batch)
    (gradient,) = torch.autograd.grad(expected, nll)
    counts = loss.count(batch)
    weights, value, _ = loss.weigh(jnp.asarray(numbers, jnp.float32), batch, counts)
    assert float(counts.divisor) == 3
    # sums of 20 numbers of about 3 in float32, against float64: 1e-6 each
    np.testing.assert_allclose(value / 3, expected.item(), rtol=1e-5)
    # as above; the largest weights are about 1
    np.testing.assert_allclose(weights / 3, gradient.numpy(), atol=1e-5)
    assert np.abs(gradient.numpy()).max() > 1e-2 and not np.any(weights[batch.roles == 0])


def test_every_loss_names_its_examples_and_shares_a_program_with_other_numbers():
    for kind, cls in LOSSES.items():
        loss = cls()
        assert loss.kind == kind and set(loss.numbers) == set(cls.array_fields)
        changed = dataclasses.replace(loss, **{name: 0.7 for name in cls.array_fields})
        assert changed.without_numbers() == loss.without_numbers()
        assert loss.without_numbers().with_numbers(loss.numbers) == loss


@pytest.mark.parametrize("loss", [DPO(), KTO()], ids=["dpo", "kto"])
def test_a_loss_takes_memory_for_tokens_and_not_for_pairs_of_them(loss):
    batch = answers.batch(kinds=("pairs",) if isinstance(loss, DPO) else KINDS, length=512)
    nll = np.ones(batch.tokens.shape, np.float32)
    program = jax.make_jaxpr(lambda nll: loss.weigh(nll, batch, loss.count(batch)))(nll)
    sizes = [v.aval.size for eqn in program.eqns for v in eqn.outvars]
    assert len(sizes) > 50 and max(sizes) <= 2 * batch.tokens.size


def many(loss):
    return batch_of(loss, rows=answers.SIZES * 4)


@pytest.mark.heavy
@pytest.mark.parametrize(
    "loss", [DPO(), pytest.param(ORPO(), marks=pytest.mark.heavy)], ids=["dpo", "orpo"]
)
def test_micro_batches_change_no_loss_and_no_weight(loss):
    assert_same_run(run(loss, many, accumulation_steps=4), run(loss, many))
    (line, _), _ = run(loss, many)
    assert line["skipped"] == 0 and line["gradient_norm"] > 1e-2


@pytest.mark.heavy  # compiles five steps
@pytest.mark.parametrize(
    "settings",
    [{"mesh": (2, 2, 2)}, {"mesh": (1, 4, 2)}, {"mesh": (1, 2, 2, 2)}, {"remat": "full"}],
    ids=str,
)
@pytest.mark.parametrize("loss", [DPO(), KTO()], ids=["dpo", "kto"])
def test_mesh_and_remat_change_no_loss_and_no_weight(loss, settings):
    assert_same_run(run(loss, many, **settings), run(loss, many))


@pytest.mark.parametrize("method", [Full(), LoRA(rank=4)], ids=["full", "lora"])
@pytest.mark.parametrize("loss", [DPO(), ORPO(), KTO()], ids=["dpo", "orpo", "kto"])
def test_the_weighted_sum_has_the_gradient_of_the_loss_and_one_pass_more(loss, method):
    model, batch = tiny.shaken(tiny.attached(method)), batch_of(loss)
    trainable, frozen = tree.partition(model, methods.trainable(model, method))
    counts = loss.count(batch)

    def weighted(trainable):
        full = tree.merge(model, trainable, frozen)
        hidden = stepping.last_hidden(full, batch, None)
        total, sums = loss_sums(loss, full, hidden, batch, None, counts)
        return total, sums.loss

    def direct(trainable):
        logits = tiny.logits(tree.merge(model, trainable, frozen), batch)
        log_probs = jax.nn.log_softmax(logits)
        nll = -jnp.take_along_axis(log_probs, batch.targets[..., None], axis=-1)[..., 0]
        return loss.value(nll, batch, counts)[0]

    @jax.jit
    def both(trainable):
        gradients, value = jax.grad(weighted, has_aux=True)(trainable)
        return (value, gradients), jax.value_and_grad(direct)(trainable)

    (value, gradients), (expected_value, expected) = both(trainable)
    # what is promised of TRL's losses; rounding of a model of three layers is a tenth of it
    np.testing.assert_allclose(value, expected_value, rtol=1e-4)
    for name, gradient in expected.items():
        size = np.abs(gradient).max()
        # as above, of the largest number of a leaf
        np.testing.assert_allclose(gradients[name], gradient, atol=1e-4 * size + 1e-6, err_msg=name)


def test_cross_entropy_is_one_pass_of_the_head_and_the_program_that_it_was():
    model, batch, loss = tiny.model(), tiny.batch(), CrossEntropy()
    hidden = jnp.zeros((*batch.tokens.shape, 32))

    def now(model, hidden):
        return loss_sums(loss, model, hidden, batch, None, None)

    def before(model, hidden):
        sums = summed_losses(model, hidden, batch.targets, batch.weights, None, loss)
        return sums.loss, (*sums, {})

    texts = [
        str(jax.make_jaxpr(jax.grad(each, argnums=(0, 1), has_aux=True))(model, hidden))
        for each in (now, before)
    ]
    assert texts[0] == texts[1]
    counts = loss.count(batch)
    assert counts.divisor is counts.tokens
    # a sum of 112 numbers in another order
    np.testing.assert_allclose(counts.tokens, batch.weights.sum(), rtol=1e-5)
    assert not loss.numbers and loss.without_numbers() is loss


def test_the_first_loss_is_ln_2_and_every_later_one_less():
    model, batch = tiny.model(), answers.batch(rows=answers.SIZES * 4)
    reference = -jax.jit(stepping.eval_step)(model, batch).nll
    names = methods.trainable(model, Full())
    loss = DPO(beta=0.5)
    config = stepping.StepConfig(names, loss=loss.without_numbers())
    hyper = dataclasses.replace(tiny.hyper(names), loss=loss.numbers)
    state = stepping.init_state(model, config)
    batch, losses = dataclasses.replace(batch, reference=reference), []
    for _ in range(3):
        state, metrics = train_step(state, batch, hyper, config)
        losses.append(float(metrics["loss"]))
    # log-probabilities of some 20 nats by two programs: 1e-6 of them, times beta
    np.testing.assert_allclose(losses[0], np.log(2), rtol=1e-4)
    assert losses[0] > losses[1] > losses[2] and float(metrics["reward_margin"]) > 0
    # another beta is another number of the same program
    before = train_step._cache_size()
    hyper = dataclasses.replace(hyper, loss=DPO(beta=2.0).numbers)
    other, _ = train_step(state, batch, hyper, config)
    assert train_step._cache_size() == before


@pytest.mark.parametrize("loss", [DPO(), IPO(), SimPO(), ORPO()], ids=str)
def test_packing_changes_no_weight_of_an_answer(loss):
    """Answers of one row, and each pair in a row of its own."""
    packed = answers.batch(rows=[[(3, 2, 4), (1, 3, 1)]])
    sizes = [int(np.sum(np.isin(packed.segments[0], pair))) for pair in ((1, 2), (3, 4))]
    nll = np.random.default_rng(2).uniform(0.5, 3, packed.tokens.shape).astype(np.float32)

    def split(x, empty=0):
        rows = np.full((2, *x.shape[1:]), empty, x.dtype)
        rows[0, : sizes[0]] = x[0, : sizes[0]]
        rows[1, : sizes[1]] = x[0, sizes[0] : sum(sizes)]
        return rows

    alone = jax.tree.map(split, packed)
    alone.segments[1] -= 2 * (alone.segments[1] > 0)
    weights, value, metrics = loss.weigh(nll, packed, loss.count(packed))
    others = loss.weigh(split(nll), alone, loss.count(alone))
    # float32 sums of 5 numbers or fewer, in rows of another length
    np.testing.assert_allclose(others.value, value, rtol=1e-5)
    # as above
    np.testing.assert_allclose(others.weights, split(np.asarray(weights)), rtol=1e-5, atol=1e-7)
    for name, metric in metrics.items():
        # as above
        np.testing.assert_allclose(others.metrics[name], metric, rtol=1e-5, err_msg=name)
