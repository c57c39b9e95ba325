"""Prefix tuning: trained keys and values in front of every layer's (Li and Liang 2021,
arXiv:2101.00190)."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from research.config.schema import Name, Positive
from research.methods.attach import attach_at
from research.methods.base import Delta, Method
from research.models.config import ModelConfig
from research.models.sites import Chain, Context, Work
from research.models.transformer import Attention, Transformer


@dataclasses.dataclass(frozen=True)
class Prefix(Method):
    """P keys and values a layer that every document of a row sees, whatever its window."""

    # keys and values P
    length: Positive = 20
    # patterns over attentions, such as layers/7/attention
    targets: tuple[str, ...] = (r"layers/\d+/attention",)
    # make them from vectors [P,D] by an MLP whose first half all layers share
    reparameterized: bool = False
    # units M of that MLP
    mlp_width: Positive = 512
    # the adapter's name
    adapter: Name = "prefix"
    kind: Literal["prefix"] = "prefix"

    def __post_init__(self):
        if self.mlp_width != Prefix.mlp_width and not self.reparameterized:
            raise ValueError("method: `mlp_width` is the MLP's of a `reparameterized` prefix")

    @property
    def trains(self) -> tuple[tuple[str, bool], ...]:
        name = re.escape(self.adapter)
        layers = (rf".*/site/{name}/(keys|values|out|out_bias)", True)
        return (layers, (rf"methods/{name}/.*", True)) if self.reparameterized else (layers,)

    def attach(self, model: Transformer, key: jax.Array) -> Transformer:
        config = model.config

        def make(key, weight, *, axes, setting, number):
            delta = FromVectors if self.reparameterized else KeysAndValues
            return delta(key, config, self)

        targets = [(pattern, self.length) for pattern in self.targets]
        model = attach_at(model, key, targets, self.adapter, make, (Attention,))
        if self.reparameterized:
            model.methods[self.adapter] = SharedVectors(key, config, self)
        return model


class KeysAndValues(Delta):
    """(keys, values) [B,T,K,N] -> [B,P+T,K,N]; rotary positions leave the prefix alone."""

    def __init__(self, key: jax.Array, config: ModelConfig, method: Prefix):
        width = config.kv_heads * config.head_dim

        def normal(key: jax.Array) -> jax.Array:
            return 0.02 * jax.random.normal(key, (method.length, width))

        first, second = jax.random.split(key)
        self.keys = nnx.Param(normal(first), axes=(None, "kv_heads"))
        self.values = nnx.Param(normal(second), axes=(None, "kv_heads"))

    def keys_and_values(self, context: Context) -> tuple[jax.Array, jax.Array]:
        """Those of the prefix, each [P,K*N]."""
        return self.keys[...], self.values[...]

    def __call__(self, x, y, weight: None, context: Context) -> tuple[jax.Array, jax.Array]:
        def front(new: jax.Array, old: jax.Array) -> jax.Array:
            new = new.astype(old.dtype).reshape(1, -1, *old.shape[2:])
            new = jnp.broadcast_to(new, (old.shape[0], *new.shape[1:]))
            return jnp.concatenate([new, old], axis=1)

        keys, values = self.keys_and_values(context)
        return front(keys, y[0]), front(values, y[1])

    def work(self, weight: None, shared: Mapping[str, Any]) -> Work:
        return Work(keys=self.keys.shape[0])


class SharedVectors(nnx.Module):
    """tanh(vectors [P,D] @ into [D,M] + bias), which all layers share."""

    def __init__(self, key: jax.Array, config: ModelConfig, method: Prefix):
        first, second = jax.random.split(key)
        normal = jax.random.normal
        vectors, into = (method.length, config.width), (config.width, method.mlp_width)
        self.vectors = nnx.Param(normal(first, vectors), axes=(None, "embed"))
        self.into = nnx.Param(config.width**-0.5 * normal(second, into), axes=("embed", "rank"))
        self.bias = nnx.Param(jnp.zeros(method.mlp_width), axes=("rank",))

    def __call__(self) -> jax.Array:
        return jnp.tanh(self.vectors[...] @ self.into[...] + self.bias[...])


class FromVectors(KeysAndValues):
    """A layer's half of the MLP: [P,M] @ out [M,2,K*N] + out_bias."""

    def __init__(self, key: jax.Array, config: ModelConfig, method: Prefix):
        width = config.kv_heads * config.head_dim
        out = method.mlp_width**-0.5 * jax.random.normal(key, (method.mlp_width, 2, width))
        self.out = nnx.Param(out, axes=("rank", None, "kv_heads"))
        self.out_bias = nnx.Param(jnp.zeros((2, width)), axes=(None, "kv_heads"))
        self.name = method.adapter

    def keys_and_values(self, context: Context) -> tuple[jax.Array, jax.Array]:
        both = jnp.einsum("pm,mcw->cpw", context.shared[self.name](), self.out[...])
        keys, values = both + self.out_bias[...][:, None]
        return keys, values

    def work(self, weight: None, shared: Mapping[str, Any]) -> Work:
        both, front = shared[self.name], f"methods/{self.name}"
        length = both.vectors.shape[0]
        first = (f"{front}/vectors", ()), (f"{front}/into", both.into.shape)
        mlp = Chain((*first, ("out", self.out.shape)), rows=length, each="pass")
        return Work((mlp,), keys=length)
