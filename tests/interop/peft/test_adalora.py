"""AdaLoRA's ranks, products and penalty beside PEFT's own code."""

import types

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from research.methods.adalora import AdaLoRA, Triplets
from research.models.sites import Context, Weight
from tests.helpers import rounding

SITE = "layers/0-1/mlp/up/site/adalora"
INPUTS, OUTPUTS, RANK, STEPS = 6, 5, 4, 14
METHOD = AdaLoRA(10, prune_from=2, every=3, rank=RANK, target_rank=2, alpha=8.0, orthogonality=0.3)
LETTERS = {"a": "A", "values": "E", "b": "B"}


def peft_model():
    """Two linears with PEFT's AdaLoRA, and a loss that is the sum of what they give."""
    import peft
    import torch

    class Linears(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = (torch.nn.Linear(INPUTS, OUTPUTS) for _ in range(2))

        def forward(self, x):
            return types.SimpleNamespace(loss=(self.first(x) + self.second(x)).sum())

    config = peft.AdaLoraConfig(
        target_modules=["first", "second"], init_r=RANK, target_r=2, tinit=2, tfinal=4, deltaT=3,
        total_step=STEPS, lora_alpha=8, orth_reg_weight=0.3,
    )  # fmt: skip
    return peft.get_peft_model(Linears(), config)


def parameter(model, layer, leaf):
    module = getattr(model.base_model.model, ("first", "second")[layer])
    return getattr(module, f"lora_{LETTERS[leaf]}")["default"]


def ours(model, what=lambda parameter: parameter.detach()):
    """{name: [2,...]} as they are named here, from PEFT's transposed ones."""
    return {
        f"{SITE}/{leaf}": jnp.stack(
            [what(parameter(model, layer, leaf)).numpy().T.squeeze() for layer in range(2)]
        )
        for leaf in LETTERS
    }


def shake(model, random, size):
    import torch

    for layer in range(2):
        for leaf in LETTERS:
            weights = parameter(model, layer, leaf)
            noise = size * random.normal(size=tuple(weights.shape))
            weights.data += torch.from_numpy(noise.astype(np.float32))


@pytest.mark.heavy
def test_ranks_go_where_pefts_allocator_has_them_go():
    import torch

    model, random = peft_model(), np.random.default_rng(0)
    memory, counts = METHOD.memory(ours(model)), []
    for step in range(STEPS):
        shake(model, random, 0.3)
        for layer in range(2):
            for leaf in LETTERS:
                weights = parameter(model, layer, leaf)
                slope = random.normal(size=tuple(weights.shape)).astype(np.float32)
                weights.grad = torch.from_numpy(slope)
        trainable, gradients = ours(model), ours(model, lambda weights: weights.grad)
        adjusted, memory = METHOD.adjust(trainable, gradients, memory, jnp.int32(step))
        model.base_model.update_and_allocate(step)
        expected = ours(model)
        for name, leaf in adjusted.items():
            assert np.array_equal(leaf, expected[name]), (step, name)
        counts.append(int(np.count_nonzero(adjusted[f"{SITE}/values"])))
    assert counts[2] == 8 and counts[3] < 8 and counts[4] == 8  # they may come back until the end
    assert counts[10:] == [4] * 4


@pytest.mark.heavy
def test_products_and_penalty_are_pefts():
    import torch

    model, random = peft_model(), np.random.default_rng(1)
    shake(model, random, 0.5)
    x = random.normal(size=(3, INPUTS)).astype(np.float32)
    leaves = ours(model)
    with torch.no_grad():
        loss = model.base_model(torch.from_numpy(x)).loss
        outputs = model.base_model.model(torch.from_numpy(x)).loss
    penalty = METHOD.penalty(leaves, METHOD.memory(leaves))
    # roundings of products of six numbers, of a root, and of the sum that the penalty is taken from
    count, scale = 4 * INPUTS, abs(float(loss)) + abs(float(outputs))
    rounding.assert_close(penalty, float(loss - outputs), roundings=count, scale=scale)
    weight = Weight(jnp.zeros((INPUTS, OUTPUTS)))
    for layer, name in enumerate(("first", "second")):
        delta = Triplets(
            jnp.zeros(2, jnp.uint32), weight, ("embed", "mlp"), RANK, METHOD.alpha / RANK
        )
        for leaf in LETTERS:
            setattr(delta, leaf, nnx.Param(leaves[f"{SITE}/{leaf}"][layer], axes=(None,) * 2))
        actual = delta(x[None], jnp.zeros((1, 3, OUTPUTS)), weight, Context())[0]
        module = getattr(model.base_model.model, name)
        with torch.no_grad():
            expected = (
                module(torch.from_numpy(x)) - module.base_layer(torch.from_numpy(x))
            ).numpy()
        # PEFT divides by rank + 1e-5: 2.5e-6 of the whole, as many as 42 roundings all one way
        scale = np.abs(expected).max()
        rounding.assert_close(actual, expected, roundings=2 * 42**2, scale=scale)
