"""Adapters: a small MLP behind a sub-layer (Houlsby 2019, 1902.00751; Pfeiffer 2020, 2005.00247),
or beside it (He 2021, 2110.04366)."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from research.config.schema import Name, Positive, PositiveNumber
from research.methods.attach import attach_at
from research.methods.base import Delta, Method
from research.models.mlp import ACTIVATIONS
from research.models.products import matmul
from research.models.sites import Context
from research.models.transformer import Residual, Transformer

HOULSBY = r"layers/\d+/(attention|mlp)_output"
PFEIFFER = r"layers/\d+/mlp_output"


@dataclasses.dataclass(frozen=True)
class Bottleneck(Method):
    """Adapters at the ends of residual branches: after attention and MLP as Houlsby's, or with
    `targets` of `layers/\\d+/mlp_output` alone as Pfeiffer's."""

    # patterns over the ends of branches, such as layers/7/attention_output and layers/7/mlp_output
    targets: tuple[str, ...] = (HOULSBY,)
    # units M of the small MLP
    width: Positive = 64
    # serial: of the branch's output; parallel: of its input
    placement: Literal["serial", "parallel"] = "serial"
    activation: Literal["silu", "gelu", "gelu_tanh", "relu"] = "gelu"
    # the small MLP's output is multiplied by it
    scale: PositiveNumber = 1.0
    # the adapter's name
    adapter: Name = "bottleneck"
    kind: Literal["bottleneck"] = "bottleneck"
    drops: ClassVar[bool] = True

    @property
    def trains(self) -> tuple[tuple[str, bool], ...]:
        return ((rf".*/site/{re.escape(self.adapter)}/(down|up)(_bias)?", True),)

    def weighted_sum(self, others: Sequence[Bottleneck], sides: Mapping[str, int]) -> Bottleneck:
        """The adapter that a weighted sum of this and others is: their units side by side.

        Raises:
          ValueError: they act on different places or in different ways.
        """
        alike = {dataclasses.replace(m, width=1, scale=1.0, adapter="_") for m in (self, *others)}
        if len(alike) > 1:
            raise ValueError("the adapters act on different places, or in different ways")
        width = self.width + sum(other.width for other in others)
        return dataclasses.replace(self, width=width, scale=1.0)

    def attach(self, model: Transformer, key: jax.Array) -> Transformer:
        def make(key, weight, *, axes, setting, number):
            return SmallMLP(key, model.config.width, self, number)

        targets = [(pattern, self.width) for pattern in self.targets]
        scales = ((".*", self.scale),)
        return attach_at(model, key, targets, self.adapter, make, (Residual,), scales)


class SmallMLP(Delta):
    """y + scale * (activation(z @ down + down_bias) @ up + up_bias), where z is y, or x if it is
    parallel; `up` [M,D] and both biases are zero at the start."""

    def __init__(self, key: jax.Array, width: int, method: Bottleneck, scale: jax.Array):
        units = method.width
        down = width**-0.5 * jax.random.truncated_normal(key, -3, 3, (width, units))
        self.down = nnx.Param(down, axes=("embed", "rank"))
        self.down_bias = nnx.Param(jnp.zeros(units), axes=("rank",))
        self.up = nnx.Param(jnp.zeros((units, width)), axes=("rank", "embed"))
        self.up_bias = nnx.Param(jnp.zeros(width), axes=("embed",))
        self.scale = nnx.Param(scale, axes=())
        self.parallel = method.placement == "parallel"
        self.activation = method.activation

    @classmethod
    def weighted_sum(cls, parts: Sequence[tuple[float, SmallMLP]]) -> dict[str, jax.Array]:
        """The leaves of the weighted sum: all units beside each other."""
        scaled_parts = [(weight * delta.scale[...], delta) for weight, delta in parts]
        return {
            "down": jnp.concatenate([delta.down[...] for _, delta in parts], 1),
            "down_bias": jnp.concatenate([delta.down_bias[...] for _, delta in parts]),
            "up": jnp.concatenate([scale * delta.up[...] for scale, delta in scaled_parts]),
            "up_bias": sum(scale * delta.up_bias[...] for scale, delta in scaled_parts),
            "scale": jnp.float32(1),
        }

    def __call__(self, x, y, weight: None, context: Context) -> jax.Array:
        act = jax.nn.relu if self.activation == "relu" else ACTIVATIONS[self.activation]
        z = context.drop(x if self.parallel else y, context.adapter_dropout)
        inner = act(matmul(z, self.down[...]) + self.down_bias[...].astype(y.dtype))
        outer = matmul(inner, self.up[...]) + self.up_bias[...].astype(y.dtype)
        return y + self.scale[...].astype(y.dtype) * outer
