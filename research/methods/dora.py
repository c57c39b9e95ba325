"""DoRA: LoRA for a weight's direction, a vector for its column norms (Liu 2024, 2402.09353)."""

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
from research.methods.base import Delta, Method
from research.methods.lora import EVERY_LINEAR, LoRA
from research.methods.low_rank import LowRank
from research.models.layers import Linear
from research.models.products import scale_features
from research.models.sites import Chain, Context, Weight, Work, chain
from research.models.transformer import Transformer


@dataclasses.dataclass(frozen=True)
class DoRA(Method):
    """Weight-decomposed low-rank adaptation of linears; fields are LoRA's."""

    targets: tuple[str, ...] = (EVERY_LINEAR,)
    rank: Positive = 16
    alpha: PositiveNumber = 32.0
    ranks: tuple[tuple[str, Positive], ...] = ()
    alphas: tuple[tuple[str, PositiveNumber], ...] = ()
    rank_stabilized: bool = False
    # the adapter's name
    adapter: Name = "dora"
    kind: Literal["dora"] = "dora"
    drops: ClassVar[bool] = True
    array_fields: ClassVar[tuple[str, ...]] = ("alpha",)
    acts_first: ClassVar[bool] = True  # it divides by the norms of the base's own columns

    @property
    def trains(self) -> tuple[tuple[str, bool], ...]:
        return ((rf".*/site/{re.escape(self.adapter)}/(low/[ab]|magnitude)", True),)

    @property
    def low(self) -> LoRA:
        """Its low-rank half, as a LoRA."""
        settings = dataclasses.asdict(self) | {"kind": "lora"}
        return LoRA(**settings)

    def attach(self, model: Transformer, key: jax.Array) -> Transformer:
        low = self.low
        low.check_rules(model, Linear)

        def make(key, weight, *, axes, setting, number):
            return Decomposed(key, weight, axes, setting, low.scale(setting, number))

        return attach_at(model, key, low.settings, self.adapter, make, (Linear,), low.numbers)


class Decomposed(Delta):
    """magnitude * (kernel + low) / norm(kernel + low), columns apart; starts as the kernel."""

    def __init__(self, key, weight: Weight, axes, rank: int, scale: jax.Array):
        self.low = LowRank(key, weight, axes, rank, scale)
        self.magnitude = nnx.Param(_norms(weight.kernel.astype(jnp.float32)), axes=axes[1:])

    def ratio(self, weight: Weight) -> jax.Array:
        """magnitude over the column norms [O]; no gradient flows through the norms (sec. 4.3)."""
        kernel = self.low.merge_into(weight, {}).kernel
        return self.magnitude[...] / jax.lax.stop_gradient(_norms(kernel))

    def __call__(self, x, y, weight: Weight, context: Context) -> jax.Array:
        bias = jnp.zeros((), y.dtype) if weight.bias is None else weight.bias.astype(y.dtype)
        y = y - bias + self.low.product(x, y, context)
        return scale_features(y, self.ratio(weight)) + bias

    def work(self, weight: Weight, shared: Mapping[str, Any]) -> Work:
        low = chain(self, "low/a", "low/b")
        (_, (inputs, _)), (_, after) = low.factors
        # the norms' product of a and b, through which no gradient flows
        norms = Chain(((None, after),), rows=inputs, each="pass")
        return Work((low._replace(factors=(*low.factors, ("magnitude", ()))), norms))

    def merge_into(self, weight: Weight, shared: Mapping[str, Any]) -> Weight:
        kernel = self.low.merge_into(weight, shared).kernel * self.ratio(weight)
        return weight._replace(kernel=kernel)

    def unmerge_residual(self, weight: Weight, shared: Mapping[str, Any]) -> dict[str, jax.Array]:
        # the merged weight no longer has the column norms before
        return {"ratio": self.ratio(weight)}

    def unmerge_from(self, weight: Weight, shared: Mapping[str, Any], residual: Any) -> Weight:
        """The weight before; infinite where a magnitude is zero."""
        directions = weight._replace(kernel=weight.kernel / residual["ratio"])
        return self.low.unmerge_from(directions, shared, {})


def _norms(kernel: jax.Array) -> jax.Array:
    """The norm of each column: kernel [I,O] -> [O]."""
    return jnp.linalg.norm(kernel, axis=0)
