"""The feed-forward half of a layer, at once or in chunks of its units."""

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
          ValueError: chunks of an MLP that cannot be split, or that do not divide the units.
        """
        if self.chunks > 1:
            return self._in_chunks(x, context)
        units = _units(self.activation, self.gate, self.up, x, context)
        return self.down(units, context.at("down"))

    @property
    def unsplittable_reason(self) -> str | None:
        """Why it cannot be computed in chunks, or None."""
        linears = [linear for linear in (self.gate, self.up, self.down) if linear is not None]
        if any(linear.site for linear in linears):
            return "a method acts inside the MLP"
        if any(isinstance(linear.kernel, QuantizedMatrix) for linear in linears):
            return "the MLP is stored in fewer bits"
        return None

    def _in_chunks(self, x: jax.Array, context: Context) -> jax.Array:
        """The MLP chunk after chunk, and again in the backward pass.

        Only one chunk's weights are gathered at a time, its gradients summed over devices and its
        activations in memory.
        """
        if self.unsplittable_reason:
            raise ValueError(
                f"compute.mlp_chunks: {self.unsplittable_reason}, and so it stays whole: set it to "
                "0"
            )
        split = functools.partial(_split, self.chunks)
        into = jax.tree.map(functools.partial(split, -1), (self.gate, self.up))
        down = self.down.weight()

        @jax.checkpoint
        def add(total, chunk):
            (gate, up), kernel = chunk
            y = _units(self.activation, gate, up, x, context)
            return total + matmul(y, kernel, jnp.float32), None

        zeros = sharding.constrain(jnp.zeros(x.shape, jnp.float32), ("batch", "sequence", None))
        total, _ = jax.lax.scan(add, zeros, (into, split(-2, down.kernel)))
        return (total if down.bias is None else total + down.bias).astype(x.dtype)


def _units(activation: str, gate: Linear | None, up: Linear, x: jax.Array, context: Context):
    """x [B,S,D] -> [B,S,F], the input of `down`."""
    y = up(x, context.at("up"))
    if gate is None:
        return ACTIVATIONS[activation](y)
    return _gate_units(activation, gate(x, context.at("gate")), y)


@functools.partial(jax.checkpoint, static_argnums=0)
def _gate_units(activation: str, gate: jax.Array, up: jax.Array) -> jax.Array:
    """activation(gate) * up, recomputed in the backward pass: cheaper than keeping four arrays."""
    return ACTIVATIONS[activation](gate) * up


def _split(chunks: int, axis: int, leaf: jax.Array) -> jax.Array:
    """[...,F,...] -> [chunks,...,F/chunks,...]; each chunk has units of every device.

    Raises:
      ValueError: the units do not divide into the chunks on each device.
    """
    axis, devices = axis % leaf.ndim, sharding.shard_count("mlp")
    before, units, after = leaf.shape[:axis], leaf.shape[axis], leaf.shape[axis + 1 :]
    if units % (chunks * devices):
        raise ValueError(
            f"compute.mlp_chunks {chunks}: {units} feed-forward units do not divide into so many "
            f"chunks on each of {devices} devices"
        )
    x = jnp.moveaxis(leaf.reshape(*before, devices, chunks, -1, *after), axis + 1, 0)
    x = x.reshape(chunks, *before, units // chunks, *after)
    axes = [None, *("embed" for _ in before), "mlp", *("embed" for _ in after)]
    return sharding.constrain(x, tuple(axes))
