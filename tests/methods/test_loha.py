"""LoHa beside PEFT's; tests/methods/test_invariants.py asks what every method must pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.methods.loha import Hadamard, LoHa
from research.models.layers import Linear
from research.models.sites import Context, Weight
from tests.helpers import rounding, tiny


@pytest.mark.heavy
def test_its_change_has_a_rank_above_its_factors():
    shape = tiny.config(tie_embeddings=False)
    model = tiny.shaken(tiny.attached(LoHa(rank=3), shape))
    block = model.layers["0-2"]
    changes = jax.vmap(Hadamard.product)(block.mlp.up.site["loha"])
    assert all(np.linalg.matrix_rank(np.asarray(change), tol=1e-4) == 9 for change in changes)


@pytest.mark.parametrize("rank", [20, 17])
def test_a_rank_that_does_not_fit_names_the_place(rank):
    with pytest.raises(ValueError, match=rf"loha at layers/\S+: rank {rank} does not fit .* x 16"):
        tiny.abstract(LoHa(rank=rank))


@pytest.mark.heavy
def test_outputs_and_gradients_are_pefts():
    """One linear with the same numbers, in PEFT 0.21's LoHa and here."""
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    rank, alpha, (inputs, outputs) = 3, 6.0, (12, 20)
    random = np.random.default_rng(0)

    def draw(*shape):
        return random.normal(size=shape).astype(np.float32)

    kernel, x, slope = draw(inputs, outputs), draw(2, 5, inputs), draw(2, 5, outputs)

    theirs = torch.nn.Sequential()
    theirs.add_module("up", torch.nn.Linear(inputs, outputs, bias=False))
    config = peft.LoHaConfig(r=rank, alpha=alpha, target_modules=["up"], module_dropout=0.0)
    theirs = peft.get_peft_model(theirs, config)
    names = {"first_in": "w1_b", "first_out": "w1_a", "second_in": "w2_b", "second_out": "w2_a"}
    leaves = {
        name: draw(*((inputs, rank) if name.endswith("in") else (rank, outputs))) for name in names
    }
    layer = theirs.base_model.model.up
    with torch.no_grad():
        layer.get_base_layer().weight.copy_(torch.tensor(kernel.T))
        for name, value in leaves.items():
            getattr(layer, f"hada_{names[name]}")["default"].copy_(torch.tensor(value.T))
    their_output = theirs(torch.tensor(x))
    (their_output * torch.tensor(slope)).sum().backward()

    linear = Linear(jax.random.key(0), inputs, outputs, ("embed", "mlp"))
    linear.kernel[...] = jnp.asarray(kernel)
    ours = Hadamard(jax.random.key(0), Weight(kernel), ("embed", "mlp"), rank, alpha / rank)
    for name, value in leaves.items():
        getattr(ours, name)[...] = jnp.asarray(value)
    linear.site["loha"] = ours

    def total(delta):
        linear.site["loha"] = delta
        y = linear(jnp.asarray(x), Context())
        return (y * slope).sum(), y

    gradients, output = jax.grad(total, has_aux=True)(ours)
    # sums over rank, inputs and, for gradients, outputs and rows; two factors and a scale
    rounding.assert_close(output, their_output.detach().numpy(), roundings=3 + 12 + 4)
    for name, peft_name in names.items():
        expected = getattr(layer, f"hada_{peft_name}")["default"].grad.numpy().T
        gradient, count = getattr(gradients, name)[...], 3 + 12 + 4 + 20 + 10
        rounding.assert_close(gradient, expected, roundings=count, err_msg=name)
