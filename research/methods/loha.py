"""LoHa: the elementwise product of two low-rank products (FedPara, Hyeon-Woo 2022, 2108.06098)."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from research.config.schema import Name, Positive, PositiveNumber
from research.methods.attach import attach_at
from research.methods.base import KernelChange, Method
from research.methods.lora import EVERY_LINEAR
from research.models.layers import Linear
from research.models.products import matmul
from research.models.sites import Chain, Context, Weight, Work
from research.models.transformer import Transformer


@dataclasses.dataclass(frozen=True)
class LoHa(Method):
    """A change of rank up to R squared, from twice the parameters of a LoRA of rank R."""

    # patterns over names of linears, such as layers/7/attention/query
    targets: tuple[str, ...] = (EVERY_LINEAR,)
    # rank R of each of the two products
    rank: Positive = 8
    # the change is multiplied by alpha / rank
    alpha: PositiveNumber = 8.0
    # the adapter's name
    adapter: Name = "loha"
    kind: Literal["loha"] = "loha"
    drops: ClassVar[bool] = True
    array_fields: ClassVar[tuple[str, ...]] = ("alpha",)

    @property
    def trains(self) -> tuple[tuple[str, bool], ...]:
        return ((rf".*/site/{re.escape(self.adapter)}/(first|second)_(in|out)", True),)

    def attach(self, model: Transformer, key: jax.Array) -> Transformer:
        def make(key, weight, *, axes, setting, number):
            return Hadamard(key, weight, axes, setting, number / setting)

        targets = [(pattern, self.rank) for pattern in self.targets]
        alphas = ((".*", self.alpha),)
        return attach_at(model, key, targets, self.adapter, make, (Linear,), alphas)


class Hadamard(KernelChange):
    """y + x @ (scale * (first_in @ first_out) * (second_in @ second_out)), with the factors [I,R]
    and [R,O]; second_in is zero at the start, as in PEFT."""

    def __init__(self, key, weight: Weight, axes, rank: int, scale: jax.Array):
        inputs, outputs = weight.kernel.shape
        if rank > min(inputs, outputs):
            raise ValueError(f"rank {rank} does not fit a weight of {inputs} x {outputs}")
        keys = jax.random.split(key, 3)

        def uniform(key: jax.Array, shape: tuple[int, int], bound: float) -> jax.Array:
            return jax.random.uniform(key, shape, minval=-bound, maxval=bound)

        into, out = (axes[0], "rank"), ("rank", axes[1])
        first_in = uniform(keys[0], (inputs, rank), inputs**-0.5)
        self.first_in = nnx.Param(first_in, axes=into)
        self.first_out = nnx.Param(uniform(keys[1], (rank, outputs), rank**-0.5), axes=out)
        self.second_in = nnx.Param(jnp.zeros((inputs, rank)), axes=into)
        self.second_out = nnx.Param(uniform(keys[2], (rank, outputs), rank**-0.5), axes=out)
        self.scale = nnx.Param(jnp.asarray(scale, jnp.float32), axes=())

    def change(self, weight: Weight, shared: Mapping[str, Any]) -> jax.Array:
        return self.product()

    def product(self) -> jax.Array:
        """The change [I,O] of the kernel."""
        first = self.first_in[...] @ self.first_out[...]
        return self.scale[...] * first * (self.second_in[...] @ self.second_out[...])

    def __call__(self, x, y, weight: Weight, context: Context) -> jax.Array:
        # computed again in the backward pass: it is as large as the weight
        change = jax.checkpoint(Hadamard.product)(self)
        return y + matmul(context.drop(x, context.adapter_dropout), change).astype(y.dtype)

    def work(self, weight: Weight, shared: Mapping[str, Any]) -> Work:
        inputs, outputs = weight.kernel.shape
        factors = [
            Chain(((f"{name}_in", ()), (f"{name}_out", leaf.shape)), rows=inputs, each="pass")
            for name, leaf in (("first", self.first_out), ("second", self.second_out))
        ]
        # the product of x and the change, which has a gradient
        return Work((Chain((("first_in", (inputs, outputs)),)), *factors))
