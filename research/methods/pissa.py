"""PiSSA: a LoRA that starts from its weight's singular vectors (Meng 2024, arXiv:2404.02948)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from research.methods.low_rank import LowRank, low_rank_product
from research.models.factorizations import svd
from research.models.products import matmul, matmul_transposed, outer
from research.models.sites import Context, Weight, Work, chain


class Principal(LowRank):
    """a and b start as the weight's R largest singular vectors, each with the root of its value.
    Their start stays beside them and is taken off, so that the weight is the base's own."""

    products: ClassVar[int] = 2

    def __init__(self, key, weight: Weight, axes, rank: int, scale: jax.Array):
        super().__init__(key, weight, axes, rank, scale)
        left, values, right = svd(weight.kernel.astype(jnp.float32))
        root = jnp.sqrt(values[:rank] / self.scale[...])
        a, b = left[:, :rank] * root, root[:, None] * right[:rank]
        self.a, self.first_a = (nnx.Param(a, axes=(axes[0], "rank")) for _ in range(2))
        self.b, self.first_b = (nnx.Param(b, axes=("rank", axes[1])) for _ in range(2))

    def product(self, x: jax.Array, y: jax.Array, context: Context) -> jax.Array:
        first_a, first_b, scale = self.first_a[...], self.first_b[...], self.scale[...]
        if jnp.issubdtype(x.dtype, jnp.integer):
            return super().product(x, y, context) - low_rank_product(
                x, y, first_a, first_b, scale, context
            )
        rows = context.drop(x, context.adapter_dropout).reshape(-1, x.shape[-1])
        change = _difference(rows, self.a[...], scale * self.b[...], first_a, scale * first_b)
        return change.reshape(y.shape).astype(y.dtype)

    def work(self, weight: Weight, shared: Mapping[str, Any]) -> Work:
        return Work((chain(self, "a", "b"), chain(self, "first_a", "first_b")))

    def pairs(self) -> list[tuple[jax.Array, jax.Array, float]]:
        return [*super().pairs(), (self.first_a[...], self.first_b[...], -1.0)]


@jax.custom_vjp
def _difference(x, a, b, first_a, first_b) -> jax.Array:
    """x @ a @ b - x @ first_a @ first_b: x [T,I] -> [T,O], as one chain of products of 2R ranks.

    One chain passes over x and the output once, and sums the difference in float32. Its gradients
    are written out, each apart, so that those of the frozen half are not computed.
    """
    return _difference_forward(x, a, b, first_a, first_b)[0]


def _difference_forward(x, a, b, first_a, first_b):
    left, right = jnp.concatenate([a, first_a], 1), jnp.concatenate([b, -first_b])
    low = matmul(x, left)
    return matmul(low, right), (x, low, left, right)


def _difference_backward(residuals, dy):
    x, low, left, right = residuals
    dlow = matmul_transposed(dy, right, x.dtype)
    da, dfirst_a = (outer(x, half) for half in jnp.split(dlow, 2, axis=1))
    db, dfirst_b = (outer(half, dy) for half in jnp.split(low, 2, axis=1))
    return matmul_transposed(dlow, left, x.dtype), da, db, dfirst_a, -dfirst_b


_difference.defvjp(_difference_forward, _difference_backward)
