"""EVA: a LoRA that starts from what its linears read (Paischer 2024, arXiv:2410.07170)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from research import tree
from research.batch import Batch
from research.methods.base import Delta, Gradients
from research.methods.low_rank import LowRank
from research.models.layers import Linear
from research.models.sites import Context, Weight, places
from research.models.transformer import Transformer
from research.tree import Arrays

PROBE = "eva_probe"


class Explained(LowRank):
    """a starts as the R principal directions of the inputs, b as zero.

    Of the tokens that are trained on, as PEFT has it, and with the ranks of the config (PEFT's
    `rho` 1). Embedding and head start as every LoRA does.
    """

    reads_data: ClassVar[bool] = True

    @classmethod
    def start_from_data(
        cls, model: Transformer, adapter: str, batches: Sequence[Batch], gradients: Gradients
    ) -> Transformer:
        model = jax.tree.map(lambda leaf: leaf, model)
        sites = {n: m for n, m in places(model, Linear) if adapter in m.site}
        for name, module in sites.items():
            size = module.kernel.shape[-2] + 1
            layers = module.kernel.shape[:1] if tree.is_stacked(name) else ()
            module.site[PROBE] = Moments(jnp.zeros((*layers, size, size)))
        names = tuple(f"{name}/site/{PROBE}/sums" for name in sites)
        sums: Arrays = {}
        for batch in batches:
            moments = gradients(model, names, batch)
            sums = {name: sums.get(name, 0.0) + moment for name, moment in moments.items()}
        for name, module in sites.items():
            del module.site[PROBE]
            a = module.site[adapter].a
            start = _directions(sums[f"{name}/site/{PROBE}/sums"], a.shape[-1])
            module.site[adapter].a = nnx.Param(start, axes=a.get_metadata()["axes"])
        return model


class Moments(Delta):
    """Changes nothing; the gradient of its `sums` [I+1,I+1] is that of the tokens' products x x^T,
    with a 1 behind each x: their second moments, their sum and their number."""

    def __init__(self, sums: jax.Array):
        self.sums = nnx.Param(sums, axes=(None, None))

    def __call__(self, x, y, weight: Weight, context: Context) -> jax.Array:
        assert context.counted is not None  # as `Gradients` say
        in_front = x.shape[1] - context.counted.shape[1]  # prompts of another method
        counted = jnp.pad(context.counted, ((0, 0), (in_front, 0)))
        return _observe(y, x, counted.astype(jnp.float32), self.sums[...])


@jax.custom_vjp
def _observe(y: jax.Array, x: jax.Array, counted: jax.Array, sums: jax.Array) -> jax.Array:
    return y


def _observe_forward(y, x, counted, sums):
    return y, (x, counted)


def _observe_backward(residuals, dy):
    x, counted = residuals
    ones = counted.reshape(-1, 1)
    rows = x.reshape(-1, x.shape[-1]).astype(jnp.float32)
    rows = jnp.concatenate([rows * ones, ones], axis=1)
    return dy, jnp.zeros_like(x), jnp.zeros_like(counted), rows.T @ rows


_observe.defvjp(_observe_forward, _observe_backward)


@jax.jit
def _covariances(sums: jax.Array) -> jax.Array:
    total, count = sums[..., :-1, -1:], sums[..., -1:, -1:]
    return sums[..., :-1, :-1] - total * total.mT / jnp.maximum(count, 1)


def _directions(sums: jax.Array, rank: int) -> jax.Array:
    """[...,I,R]: eigenvectors of the largest R eigenvalues of the inputs' covariance."""
    covariances = _covariances(sums)
    stack = covariances.reshape(-1, *covariances.shape[-2:])
    # one after the other: a batch of them needs the memory of all
    vectors = jax.lax.map(lambda matrix: jnp.linalg.eigh(matrix)[1][:, ::-1][:, :rank], stack)
    return vectors.reshape(*covariances.shape[:-1], rank)
