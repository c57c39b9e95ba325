"""The feed-forward half of a layer, whole or in chunks of its units."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from research import sharding
from research.models.config import ModelConfig
from research.models.layers import Linear
from research.models.products import matmul
from research.models.quantized_matrix import QuantizedMatrix
from research.models.sites import Context

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
}


class MLP(nnx.Module):
    """`down(activation(gate(x)) * up(x))` (Shazeer 2020, arXiv:2002.05202), or without a gate
    `down(activation(up(x)))`."""

    def __init__(self, key: jax.Array, config: ModelConfig):
        d, f, biases = config.width, config.mlp_width, config.biases
        keys = jax.random.split(key, 3)
        into = ("embed", "mlp")
        self.gate = nnx.data(None)
        if config.gated:
            self.gate = Linear(keys[0], d, f, into, bias="gate" in biases)
        self.up = Linear(keys[1], d, f, into, bias="up" in biases)
        self.down = Linear(
            keys[2],
            f,
            d,
            ("mlp", "embed"),
            bias="down" in biases,
            deviation=(2 * config.layers) ** -0.5 * f**-0.5,
        )
        self.activation, self.chunks = config.activation, config.mlp_chunks

    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        """x [B,S,D] -> [B,S,D].

        Raises:
          ValueError: chunks of what must stay whole, or that do not divide the units.
        """
        if self.chunks > 1:
            return self._in_chunks(x, context)
        return self.down(
            _units(self.activation, self.gate, self.up, x, context), context.at("down")
        )

    @property
    def whole(self) -> str | None:
        """Why it cannot be cut into chunks, if so."""
        linears = [linear for linear in (self.gate, self.up, self.down) if linear is not None]
        if any(linear.site for linear in linears):
            return "a method acts inside the MLP"
        if any(isinstance(linear.kernel, QuantizedMatrix) for linear in linears):
            return "the MLP is stored in fewer bits"
        return None

    def _in_chunks(self, x: jax.Array, context: Context) -> jax.Array:
        """The same, some units after the others and again in the backward pass: one chunk's weights
        are gathered at a time, its gradients summed over devices and its activations held."""
        if self.whole:
            raise ValueError(
                f"compute.mlp_chunks: {self.whole}, and so it stays whole: set it to 0"
            )
        cut = functools.partial(_cut, self.chunks)
        into = jax.tree.map(functools.partial(cut, -1), (self.gate, self.up))
        down = self.down.weight()

        @jax.checkpoint
        def add(total, chunk):
            (gate, up), kernel = chunk
            y = _units(self.activation, gate, up, x, context)
            return total + matmul(y, kernel, jnp.float32), None

        start = sharding.constrain(jnp.zeros(x.shape, jnp.float32), ("batch", "sequence", None))
        total, _ = jax.lax.scan(add, start, (into, cut(-2, down.kernel)))
        return (total if down.bias is None else total + down.bias).astype(x.dtype)


def _units(activation: str, gate: Linear | None, up: Linear, x: jax.Array, context: Context):
    """x [B,S,D] -> [B,S,F], what `down` reads."""
    y = up(x, context.at("up"))
    if gate is None:
        return ACTIVATIONS[activation](y)
    return _gated(activation, gate(x, context.at("gate")), y)


@functools.partial(jax.checkpoint, static_argnums=0)
def _gated(activation: str, gate: jax.Array, up: jax.Array) -> jax.Array:
    """Recomputed in the backward pass: reading two arrays again is cheaper than keeping four."""
    return ACTIVATIONS[activation](gate) * up


def _cut(chunks: int, axis: int, leaf: jax.Array) -> jax.Array:
    """[...,F,...] -> [chunks,...,F/chunks,...], each with units of all devices that share them."""
    axis, devices = axis % leaf.ndim, sharding.shard_count("mlp")
    before, units, after = leaf.shape[:axis], leaf.shape[axis], leaf.shape[axis + 1 :]
    if units % (chunks * devices):
        raise ValueError(
            f"compute.mlp_chunks {chunks}: {units} feed-forward units do not divide into so many "
            f"chunks on each of {devices} devices"
        )
    split = jnp.moveaxis(leaf.reshape(*before, devices, chunks, -1, *after), axis + 1, 0)
    cut = split.reshape(chunks, *before, units // chunks, *after)
    axes = [None, *("embed" for _ in before), "mlp", *("embed" for _ in after)]
    return sharding.constrain(cut, tuple(axes))
