"""OFT: an orthogonal rotation of each linear's input, block by block (Qiu 2023, 2306.07280)."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from research.config.schema import Name, Positive
from research.methods.attach import attach_at
from research.methods.base import Delta, Method
from research.methods.lora import EVERY_LINEAR
from research.models.layers import Linear
from research.models.products import matmul
from research.models.sites import Chain, Context, Weight, Work
from research.models.transformer import Transformer


@dataclasses.dataclass(frozen=True)
class OFT(Method):
    """Orthogonal finetuning of linears: angles between a weight's columns stay as they are."""

    # patterns over names of linears
    targets: tuple[str, ...] = (EVERY_LINEAR,)
    # inputs b that one rotation mixes; it divides the inputs of every target
    block_size: Positive = 32
    # the adapter's name
    adapter: Name = "oft"
    kind: Literal["oft"] = "oft"
    drops: ClassVar[bool] = True

    @property
    def trains(self) -> tuple[tuple[str, bool], ...]:
        return ((rf".*/site/{re.escape(self.adapter)}/skew", True),)

    def attach(self, model: Transformer, key: jax.Array) -> Transformer:
        def make(key, weight, *, axes, setting, number):
            return Rotation(weight, axes, setting)

        targets = [(pattern, self.block_size) for pattern in self.targets]
        return attach_at(model, key, targets, self.adapter, make, (Linear,))


class Rotation(Delta):
    """x @ R before the product, with R orthogonal in blocks [b,b] and the identity at the start.

    Each block is the Cayley transform (I + Q) (I - Q)^-1 of a skew-symmetric Q, whose entries above
    the diagonal train. What is computed is R - I: near the identity it keeps its digits in
    bfloat16.
    """

    def __init__(self, weight: Weight, axes: tuple[str | None, ...], block_size: int):
        inputs = weight.kernel.shape[0]
        if inputs % block_size:
            raise ValueError(f"block_size {block_size} does not divide {inputs} inputs")
        entries = jnp.zeros((inputs // block_size, block_size * (block_size - 1) // 2))
        self.skew = nnx.Param(entries, axes=(axes[0], None))
        self.block_size = block_size

    def change(self) -> jax.Array:
        """R - I of each block [I/b,b,b]: 2 (I - Q)^-1 Q."""
        rows, columns = np.triu_indices(self.block_size, 1)
        blocks, size = self.skew.shape[0], self.block_size
        upper = jnp.zeros((blocks, size, size)).at[:, rows, columns].set(self.skew[...])
        skew = upper - upper.swapaxes(1, 2)
        return jnp.linalg.solve(jnp.eye(size) - skew, 2 * skew)

    def before(self, x: jax.Array, context: Context) -> jax.Array:
        rows = context.drop(x, context.adapter_dropout)
        blocks = rows.reshape(*x.shape[:-1], -1, self.block_size)
        difference = jax.vmap(matmul, (-2, 0), -2)(blocks, self.change())
        return x + difference.reshape(x.shape)

    def work(self, weight: Weight, shared: Mapping[str, Any]) -> Work:
        blocks = (self.skew.shape[0], self.block_size, self.block_size)
        return Work((Chain((("skew", blocks),)),), before=True)

    def merge_into(self, weight: Weight, shared: Mapping[str, Any]) -> Weight:
        return self._rotate(weight, self.change())

    def unmerge_from(self, weight: Weight, shared: Mapping[str, Any], residual: Any) -> Weight:
        return self._rotate(weight, self.change().swapaxes(1, 2))  # its inverse

    def _rotate(self, weight: Weight, change: jax.Array) -> Weight:
        """The weight with its kernel [I,O] turned by I + change."""
        kernel = weight.kernel.astype(jnp.float32)
        blocks = kernel.reshape(-1, self.block_size, kernel.shape[-1])
        return weight._replace(kernel=kernel + (change @ blocks).reshape(kernel.shape))
