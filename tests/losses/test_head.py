"""A head for classes or a number: torch's losses and gradients, and invariants of the step."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import methods, tree
from research import step as stepping
from research.batch import Batch
from research.losses import CrossEntropy, SquaredError
from research.losses.weighted import loss_sums
from research.methods import Classifier, Full, LoRA, Several
from research.training import cost
from tests.helpers import rounding, tiny
from tests.helpers.two_steps import assert_same_run, run

CLASSES = 5
BOTH = {
    "classes": (CrossEntropy(label_smoothing=0.1), Classifier(CLASSES)),
    "numbers": (SquaredError(chunk=5), Classifier(1)),
}


def labelled(loss=None, rows: int = 8) -> Batch:
    """Two documents in a row, each with a class and a number at its last token."""
    batch, random = tiny.batch(rows), np.random.default_rng(4)
    segments = batch.segments
    is_last = (segments > 0) & (np.roll(segments, -1, axis=1) != segments)
    shape = segments.shape
    return dataclasses.replace(
        batch,
        targets=np.where(is_last, random.integers(0, CLASSES, shape), 0).astype(np.int32),
        weights=is_last.astype(np.float32),
        values=np.where(is_last, random.normal(size=shape), 0).astype(np.float32),
    )


def beside(head, other):
    return head if other is None else Several(of=(other, head))


@pytest.mark.heavy
@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("other", [None, LoRA(rank=4), Full()], ids=["frozen", "lora", "full"])
def test_value_and_gradients_are_those_of_torchs_loss_on_each_documents_last_token(kind, other):
    torch = pytest.importorskip("torch")
    loss, head = BOTH[kind]
    method, batch = beside(head, other), labelled()
    model = tiny.shaken(tiny.attached(method))
    trainable, frozen = tree.partition(model, methods.trainable(model, method))
    rows, columns = np.nonzero(batch.weights)

    def summed(trainable):
        whole = tree.merge(model, trainable, frozen)
        hidden = stepping.last_hidden(whole, batch, None)
        return loss_sums(loss, whole, hidden, batch, None, None)

    def scores(trainable):
        whole = tree.merge(model, trainable, frozen)
        hidden = stepping.last_hidden(whole, batch, None)[rows, columns]
        return hidden @ whole.head.site["classifier"].kernel[...]

    @jax.jit
    def ours(trainable):
        return jax.grad(summed, has_aux=True)(trainable)

    gradients, sums = ours(trainable)
    outputs, pull = jax.vjp(jax.jit(scores), trainable)
    theirs = torch.tensor(np.asarray(outputs), requires_grad=True)
    if kind == "classes":
        labels = torch.tensor(batch.targets[rows, columns]).long()
        value = torch.nn.functional.cross_entropy(
            theirs, labels, reduction="sum", label_smoothing=0.1
        )
        right = (theirs.argmax(-1) == labels).sum()
    else:
        labels = torch.tensor(batch.values[rows, columns])
        value = torch.nn.functional.mse_loss(theirs[:, 0], labels, reduction="sum")
        right = ((theirs[:, 0] - labels).abs() <= 0.5).sum()
        error = torch.nn.functional.l1_loss(theirs[:, 0], labels, reduction="sum")
        # 16 numbers of about 1 in float32
        np.testing.assert_allclose(sums.metrics["absolute_error"], error.item(), rtol=1e-5)
    value.backward()
    np.testing.assert_allclose(sums.loss, value.item(), rtol=1e-5)  # as above
    assert sums.correct == right.item() and 0 < right < len(rows)
    expected = pull(jnp.asarray(theirs.grad.numpy()))[0]
    for name, gradient in expected.items():
        # of each leaf's largest number; a tied table and its embedding are one leaf
        rounding.assert_close(
            gradients[name],
            gradient,
            roundings=tiny.GRADIENT_ROUNDINGS,
            scale=np.abs(gradient).max(),
            err_msg=name,
        )
    assert np.abs(expected["head/site/classifier/kernel"]).max() > 0.1


@pytest.mark.parametrize("kind", BOTH)
def test_a_document_says_the_same_in_a_packed_row_as_alone(kind):
    model = tiny.shaken(tiny.attached(BOTH[kind][1]))
    tiny.check_documents_apart(tiny.logits, model)


@pytest.mark.heavy  # compiles five steps
@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("classes", {"accumulation_steps": 4}),
        ("classes", {"remat": "full", "mesh": (2, 2, 2)}),
        ("numbers", {"accumulation_steps": 2, "mesh": (2, 2, 1)}),
    ],
    ids=str,
)
def test_micro_batches_mesh_and_remat_change_no_loss_and_no_weight(kind, settings):
    loss, head = BOTH[kind]
    method = Several(of=(LoRA(rank=4), head))
    one = run(loss, labelled, method=method)
    assert_same_run(run(loss, labelled, method=method, **settings), one)


def test_logits_of_the_vocabulary_are_not_made_and_a_soft_cap_is_the_vocabularys():
    """No array of the step's gradient is of the vocabulary, but for table and its lookup."""
    head = Classifier(CLASSES)
    shape = tiny.config(tie_embeddings=False, logit_cap=1e-3)
    model, batch = tiny.shaken(tiny.attached(head, shape), size=1.0), labelled()
    trainable, frozen = tree.partition(model, methods.trainable(model, head))

    def summed(trainable):
        whole = tree.merge(model, trainable, frozen)
        hidden = stepping.last_hidden(whole, batch, None)
        return loss_sums(CrossEntropy(), whole, hidden, batch, None, None)[0]

    jaxpr = jax.make_jaxpr(jax.grad(summed))(trainable).jaxpr
    shapes = {tuple(v.aval.shape) for equation in jaxpr.eqns for v in equation.outvars}
    assert not [s for s in shapes if s[-1:] == (shape.vocabulary,)]
    assert np.abs(tiny.logits(model, batch)).max() > 1e-2  # far beyond the cap
    assert cost.forward_flops(shape, model).head == 2 * shape.width * CLASSES


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Several(of=(Classifier(3), LoRA())), "classifier reads what the others leave"),
        (lambda: Several(of=(LoRA(), Full())), "full trains everything"),
        (lambda: Several(of=(Full(), LoRA(), Classifier(3))), "full trains everything"),
        (
            lambda: tiny.attached(Several(of=(LoRA(targets=("head",)), Classifier(3)))),
            "lora acts on the logits of tokens, which are not made",
        ),
        (lambda: methods.Bank(of=Classifier(3), names=("a", "b")), "nothing that a bank"),
    ],
    ids=["order", "full", "three", "head", "bank"],
)
def test_what_a_head_does_not_go_with_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
