"""VeRA: two vectors a linear around random matrices that all share (Kopiczko 2023, 2310.11454)."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from research import tree
from research.config.schema import Name, Positive, PositiveNumber
from research.methods.attach import attach_at, linears
from research.methods.base import KernelChange, Method
from research.methods.lora import EVERY_LINEAR
from research.methods.low_rank import low_rank_product
from research.models.layers import Linear
from research.models.products import scale_features
from research.models.sites import Chain, Context, Weight, Work
from research.models.transformer import Transformer


@dataclasses.dataclass(frozen=True)
class VeRA(Method):
    """Vector-based random-matrix adaptation of linears."""

    # patterns over names of linears
    targets: tuple[str, ...] = (EVERY_LINEAR,)
    # rank R of the shared matrices
    rank: Positive = 256
    # what the vector between the two matrices starts at
    inner: PositiveNumber = 0.1
    # the adapter's name
    adapter: Name = "vera"
    kind: Literal["vera"] = "vera"
    drops: ClassVar[bool] = True

    @property
    def trains(self) -> tuple[tuple[str, bool], ...]:
        return ((rf".*/site/{re.escape(self.adapter)}/(inner|outer)", True),)

    def attach(self, model: Transformer, key: jax.Array) -> Transformer:
        def make(key, weight, *, axes, setting, number):
            return VectorPair(weight.kernel.shape[1], axes, self)

        targets = [(pattern, self.rank) for pattern in self.targets]
        model = attach_at(model, key, targets, self.adapter, make, (Linear,))
        sides = [
            linear.kernel.shape[-2:]
            for name, linear in linears(model)
            if tree.match(targets, name, None) is not None
        ]
        inputs, outputs = (max(side) for side in zip(*sides, strict=True))
        if self.rank > min(inputs, outputs):
            raise ValueError(
                f"{self.adapter}: rank {self.rank} is over the smaller side of the matrices that "
                f"all share, {inputs} x {outputs}"
            )
        model.methods[self.adapter] = SharedMatrices(key, inputs, outputs, self.rank)
        return model


class SharedMatrices(nnx.Module):
    """a [I,R] and b [R,O], random and frozen; a smaller linear takes their first rows and
    columns."""

    def __init__(self, key: jax.Array, inputs: int, outputs: int, rank: int):
        keys = jax.random.split(key)

        def uniform(key: jax.Array, shape: tuple[int, int], fan: int) -> jax.Array:
            bound = (6 / fan) ** 0.5
            return jax.random.uniform(key, shape, minval=-bound, maxval=bound)

        # as PEFT starts: kaiming_uniform of the matrices as torch has them
        self.a = nnx.Param(uniform(keys[0], (inputs, rank), inputs), axes=(None, "rank"))
        self.b = nnx.Param(uniform(keys[1], (rank, outputs), rank), axes=("rank", None))


class VectorPair(KernelChange):
    """y + outer * (((x @ a) * inner) @ b), with inner [R] constant and outer [O] zero at first."""

    def __init__(self, outputs: int, axes: tuple[str | None, ...], method: VeRA):
        self.inner = nnx.Param(jnp.full(method.rank, method.inner), axes=("rank",))
        self.outer = nnx.Param(jnp.zeros(outputs), axes=axes[1:])
        self.name = method.adapter

    def __call__(self, x, y, weight: Weight, context: Context) -> jax.Array:
        a, b = self.matrices(context.shared, x.shape[-1])
        change = low_rank_product(x, y, a, b, self.inner[...], context)
        return y + scale_features(change, self.outer[...])

    def matrices(self, shared: Mapping[str, Any], inputs: int) -> tuple[jax.Array, jax.Array]:
        """a [I,R] and b [R,O], cut to this linear's sides."""
        both = shared[self.name]
        return both.a[...][:inputs], both.b[...][:, : self.outer.shape[0]]

    def work(self, weight: Weight, shared: Mapping[str, Any]) -> Work:
        (inputs, outputs), rank = weight.kernel.shape, self.inner.shape[0]
        a = f"methods/{self.name}/a", (inputs, rank)
        b = f"methods/{self.name}/b", (rank, outputs)
        return Work((Chain((a, ("inner", ()), b, ("outer", ()))),))

    def change(self, weight: Weight, shared: Mapping[str, Any]) -> jax.Array:
        a, b = self.matrices(shared, weight.kernel.shape[0])
        return (a * self.inner[...]) @ b * self.outer[...]
