"""The product of two thin matrices beside a frozen one, which LoRA and its kin are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from research.batch import Batch
from research.methods.base import Gradients, KernelChange
from research.models.products import matmul
from research.models.sites import Context, Weight
from research.models.transformer import Transformer


class LowRank(KernelChange):
    """y + scale * (x @ a) @ b, with a [I,R] random and b [R,O] zero at the start.

    In the embedding x are tokens, and a's rows are looked up: there a is zero and b random.
    """

    # how many products a @ b it adds
    products: ClassVar[int] = 1
    # whether its start is that of `start_from_data`
    reads_data: ClassVar[bool] = False

    def __init__(
        self,
        key: jax.Array,
        weight: Weight,
        axes: tuple[str | None, ...],
        rank: int,
        scale: jax.Array,
    ):
        inputs, outputs = weight.kernel.shape
        if not 0 < rank <= min(inputs, outputs):
            raise ValueError(f"rank {rank} does not fit a weight of {inputs} x {outputs}")
        if axes[0] == "vocabulary":  # as PEFT starts
            a, b = jnp.zeros((inputs, rank)), jax.random.normal(key, (rank, outputs))
        else:
            bound = inputs**-0.5  # as PEFT starts: kaiming_uniform(a=sqrt(5))
            a = jax.random.uniform(key, (inputs, rank), minval=-bound, maxval=bound)
            b = jnp.zeros((rank, outputs))
        self.a = nnx.Param(a, axes=(axes[0], "rank"))
        self.b = nnx.Param(b, axes=("rank", axes[1]))
        # an array, so that runs with other scales share the program; it never trains
        self.scale = nnx.Param(jnp.asarray(scale, jnp.float32), axes=())

    @classmethod
    def start_from_data(
        cls, model: Transformer, adapter: str, batches: Sequence[Batch], gradients: Gradients
    ) -> Transformer:
        """The model whose adapter starts as data says; see `Method.start_from_data`."""
        return model

    def product(self, x: jax.Array, y: jax.Array, context: Context) -> jax.Array:
        """scale * (x @ a) @ b: x [B,S,I], or tokens [B,S], -> [B,S,O] in y's type."""
        return low_rank_product(x, y, self.a[...], self.b[...], self.scale[...], context)

    def __call__(self, x, y, weight: Weight, context: Context) -> jax.Array:
        return y + self.product(x, y, context)

    def change(self, weight: Weight, shared: Mapping[str, Any]) -> jax.Array:
        return sum(sign * self.scale[...] * a @ b for a, b, sign in self.pairs())

    def pairs(self) -> list[tuple[jax.Array, jax.Array, float]]:
        """The products a @ b that it adds, each with its sign."""
        return [(self.a[...], self.b[...], 1.0)]

    @classmethod
    def weighted_sum(cls, parts: Sequence[tuple[float, LowRank]]) -> dict[str, jax.Array]:
        """The leaves of the weighted sum: a [I,R+R'], b [R+R',O], scale []; with more ranks than
        the smaller side has numbers, the sum itself and an identity."""
        a, b = [], []
        for weight, delta in parts:
            for left, right, sign in delta.pairs():
                a.append(left)
                b.append(weight * sign * delta.scale[...] * right)
        left, right = jnp.concatenate(a, 1), jnp.concatenate(b)
        (inputs, rank), outputs = left.shape, right.shape[1]
        if rank > min(inputs, outputs):
            change = left @ right
            small = jnp.eye(min(inputs, outputs))
            left, right = (small, change) if inputs <= outputs else (change, small)
        return {"a": left, "b": right, "scale": jnp.float32(1)}


def low_rank_product(x, y, a, b, scale, context: Context) -> jax.Array:
    """scale * (x @ a) @ b, or scale * a[x] @ b for tokens, in y's type."""
    if jnp.issubdtype(x.dtype, jnp.integer):
        low = context.drop(a[x].astype(y.dtype), context.adapter_dropout)
        prompts = y.shape[1] - x.shape[1]  # of another method, in front
        low = jnp.pad(low, ((0, 0), (prompts, 0), (0, 0)))
    else:
        low = matmul(context.drop(x, context.adapter_dropout), a)
    return matmul(low * scale.astype(low.dtype), b).astype(y.dtype)
