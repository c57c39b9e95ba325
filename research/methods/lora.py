"""LoRA: a trained product of two thin matrices beside each frozen one (arXiv:2106.09685)."""

from __future__ import annotations

import dataclasses
import re
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from research.config import Name, Positive, PositiveNumber
from research.methods.attaching import attach_to_linears
from research.models.products import matmul
from research.models.sites import Context, Weight
from research.models.transformer import Transformer

EVERY_LINEAR = r"layers/\d+/(attention|mlp)/\w+"


@dataclasses.dataclass(frozen=True)
class LoRA:
    """Low-rank adaptation of linears; everything of the base stays frozen."""

    # patterns over names of linears, such as layers/7/attention/query
    targets: tuple[str, ...] = (EVERY_LINEAR,)
    # rank R of the product
    rank: Positive = 16
    # the product is multiplied by alpha / rank
    alpha: PositiveNumber = 32.0
    # the adapter's name
    adapter: Name = "lora"
    kind: Literal["lora"] = "lora"

    @property
    def trains(self) -> tuple[tuple[str, bool], ...]:
        return ((rf".*/site/{re.escape(self.adapter)}/[ab]", True),)

    def attach(self, model: Transformer, key: jax.Array) -> Transformer:
        def make(key, weight, axes, setting):
            return LowRank(key, weight, axes, setting, self.alpha)

        targets = [(pattern, self.rank) for pattern in self.targets]
        return attach_to_linears(model, key, targets, self.adapter, make)


class LowRank(nnx.Module):
    """y + scale * (x @ a) @ b, with a [I,R] random and b [R,O] zero at the start."""

    def __init__(
        self,
        key: jax.Array,
        weight: Weight,
        axes: tuple[str | None, ...],
        rank: int,
        alpha: float,
    ):
        inputs, outputs = weight.kernel.shape
        if not 0 < rank <= min(inputs, outputs):
            raise ValueError(f"rank {rank} does not fit a weight of {inputs} x {outputs}")
        bound = inputs**-0.5  # as PEFT starts: kaiming_uniform(a=sqrt(5))
        a = jax.random.uniform(key, (inputs, rank), minval=-bound, maxval=bound)
        self.a = nnx.Param(a, axes=(axes[0], "rank"))
        self.b = nnx.Param(jnp.zeros((rank, outputs)), axes=("rank", axes[1]))
        # an array, so that runs with other scales share the program; it never trains
        self.scale = nnx.Param(jnp.asarray(alpha / rank, jnp.float32), axes=())

    def product(self, x: jax.Array, context: Context) -> jax.Array:
        """scale * (x @ a) @ b: x [B,S,I] -> [B,S,O]."""
        x = context.drop(x, context.site_dropout)
        low = matmul(x, self.a[...]) * self.scale[...].astype(x.dtype)
        return matmul(low, self.b[...])

    def __call__(self, x, y, weight: Weight, context: Context) -> jax.Array:
        return y + self.product(x, context)

    def merged(self, weight: Weight) -> Weight:
        """The weight that does the same alone."""
        kernel = weight.kernel.astype(jnp.float32) + self.scale[...] * self.a[...] @ self.b[...]
        return weight._replace(kernel=kernel)
