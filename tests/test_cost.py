"""Closed forms against what JAX and XLA count."""

import jax
import numpy as np
import pytest

from research import cost, methods
from research import step as stepping
from research.methods import Full, LoRA, Partial
from tests import tiny


@pytest.mark.parametrize(
    "method", [Full(), LoRA(rank=8), Partial((r"layers/2/.*",))], ids=lambda m: m.kind
)
def test_flops_of_a_step_equal_xlas_count(method):
    """XLA counts elementwise work too, so products must dominate: a wide model, unrolled.

    Attention is counted in full by XLA (plain backend) and over the causal half by us, so the
    sequence is short.
    """
    shape = tiny.config(width=256, hidden=768, longest_stack=1, vocabulary=512)
    rows, length = 8, 64
    batch = tiny.batch(rows, length, documents=1)
    model = tiny.abstract(method, shape)
    names = methods.trainable(model, method)
    plan = stepping.Plan(names)
    state = jax.eval_shape(lambda model: stepping.init_state(model, plan), model)
    compiled = (
        jax.jit(stepping.train_step, static_argnames="plan")
        .lower(state, batch, tiny.hyper(names), plan)
        .compile()
    )
    counted = compiled.cost_analysis()["flops"]
    ours = cost.flops_per_token(shape, model, names, length).train * rows * length
    np.testing.assert_allclose(ours, counted, rtol=0.06)


def test_lora_parameters_equal_the_closed_form():
    shape, rank = tiny.CONFIG, 4
    model = tiny.abstract(LoRA(rank=rank), shape)
    d, f, kv = shape.width, shape.hidden, shape.key_heads * shape.size
    pairs = [(d, d), (d, kv), (d, kv), (d, d), (d, f), (d, f), (f, d)]  # q k v o, gate up down
    expected = shape.layers * rank * sum(i + o for i, o in pairs)
    assert cost.count(model, methods.trainable(model, LoRA(rank=rank))) == expected
