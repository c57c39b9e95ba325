"""The MLP in chunks of its units gives the same as at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import sharding
from research import step as stepping
from research.methods.lora import LoRA
from tests.helpers import rounding, tiny


@jax.jit
def value_and_gradient(model, batch):
    # not their squares, of which the last norm fixes the mean: that gradient is rounding alone
    return jax.value_and_grad(lambda m: jnp.sin(stepping.last_hidden(m, batch, None)).mean())(model)


@pytest.mark.parametrize(
    ("shape", "mesh"),
    [
        ({}, (1, 1, 1, 1)),
        pytest.param({"remat": "full"}, (1, 2, 2, 2), marks=pytest.mark.heavy),
        pytest.param(
            {"gated": False, "activation": "gelu", "biases": ("up", "down")},
            (1, 2, 2, 1),
            marks=pytest.mark.heavy,
        ),
    ],
    ids=str,
)
def test_chunks_of_units_give_the_whole_value_and_gradient(shape, mesh):
    batch, devices = tiny.batch(), jax.devices()[: int(np.prod(mesh))]
    expected = value_and_gradient(tiny.model(tiny.config(**shape)), batch)
    with sharding.mesh_context(sharding.MeshConfig(*mesh).make(devices), sharding.RULES):
        actual = value_and_gradient(tiny.model(tiny.config(**shape, mlp_chunks=3)), batch)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        rounding.assert_close(a, b, roundings=tiny.GRADIENT_ROUNDINGS)


def test_units_that_do_not_divide_and_methods_inside_are_refused():
    batch = tiny.batch()
    with pytest.raises(ValueError, match="48 feed-forward units do not divide into so many"):
        jax.eval_shape(value_and_gradient, tiny.model(tiny.config(mlp_chunks=5)), batch)
    model = tiny.model(tiny.config(mlp_chunks=3))
    inside = LoRA(rank=2, targets=(r"layers/\d+/mlp/down",)).attach(model, jax.random.key(0))
    with pytest.raises(ValueError, match="a method acts inside the MLP"):
        jax.eval_shape(value_and_gradient, inside, batch)
    beside = LoRA(rank=2, targets=(r"layers/\d+/attention/query",))
    jax.eval_shape(value_and_gradient, beside.attach(model, jax.random.key(0)), batch)
