"""The small modules that a decoder is made of."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from research import sharding
from research.models import sites
from research.models.products import matmul, matmul_transposed
from research.models.sites import Context, Weight


class Linear(nnx.Module):
    """`y = x @ kernel + bias`, then its site."""

    def __init__(
        self,
        key: jax.Array,
        inputs: int,
        outputs: int,
        axes: tuple[str | None, str | None],
        *,
        bias: bool = False,
        deviation: float | None = None,
    ):
        deviation = inputs**-0.5 if deviation is None else deviation
        kernel = deviation * jax.random.truncated_normal(key, -3, 3, (inputs, outputs))
        self.kernel = nnx.Param(kernel, axes=axes)
        self.bias = nnx.Param(jnp.zeros(outputs), axes=axes[1:]) if bias else nnx.data(None)
        self.site = sites.empty()

    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        """x [B,S,I] -> [B,S,O]."""
        weight = self.weight()
        y = matmul(x, weight.kernel)
        if weight.bias is not None:
            y = y + weight.bias.astype(y.dtype)
        return sites.apply(self.site, x, y, weight, context)

    def weight(self) -> Weight:
        return Weight(self.kernel[...], None if self.bias is None else self.bias[...])


class RMSNorm(nnx.Module):
    """Root mean square norm in float32 (Zhang and Sennrich 2019, arXiv:1910.07467)."""

    def __init__(self, size: int, epsilon: float):
        self.scale = nnx.Param(jnp.ones(size), axes=("norm",))
        self.epsilon = epsilon

    def __call__(self, x: jax.Array) -> jax.Array:
        """x [...,D] -> [...,D]."""
        wide = x.astype(jnp.float32)
        mean_square = jnp.mean(wide * wide, axis=-1, keepdims=True)
        return (wide * jax.lax.rsqrt(mean_square + self.epsilon) * self.scale[...]).astype(x.dtype)


class Embedding(nnx.Module):
    """A table of token vectors; its site may put prompt vectors in front."""

    def __init__(self, key: jax.Array, vocabulary: int, width: int):
        table = width**-0.5 * jax.random.truncated_normal(key, -3, 3, (vocabulary, width))
        self.kernel = nnx.Param(table, axes=("vocabulary", "embed"))
        self.site = sites.empty()

    def __call__(self, tokens: jax.Array, dtype: jnp.dtype, context: Context) -> jax.Array:
        """tokens [B,S] -> [B,S,D], or [B,P+S,D] with P prompt tokens attached."""
        # whole rows: gathered over `fsdp` as any weight is before its use
        table = sharding.constrain(self.kernel[...], ("vocabulary", None))
        y = table[tokens].astype(dtype)
        return sites.apply(self.site, tokens, y, Weight(table), context)


class Head(nnx.Module):
    """The vocabulary projection. A tied head owns no kernel: it is given the embedding's."""

    def __init__(self, key: jax.Array, width: int, vocabulary: int, tied: bool):
        self.kernel = nnx.data(None)
        if not tied:
            kernel = width**-0.5 * jax.random.truncated_normal(key, -3, 3, (width, vocabulary))
            self.kernel = nnx.Param(kernel, axes=("embed", "vocabulary"))
        self.site = sites.empty()

    def __call__(self, x: jax.Array, table: jax.Array | None, context: Context) -> jax.Array:
        """x [B,S,D], table [V,D] (the embedding's, if tied) -> logits [B,S,V] in float32."""
        if table is not None:
            y, kernel = matmul_transposed(x, table, jnp.float32), table.T
        else:
            kernel = self.kernel[...]
            y = matmul(x, kernel, jnp.float32)
        return sites.apply(self.site, x, y, Weight(kernel), context).astype(jnp.float32)


class GatedMLP(nnx.Module):
    """`down(silu(gate(x)) * up(x))` (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, key: jax.Array, width: int, hidden: int, depth_scale: float):
        keys = jax.random.split(key, 3)
        self.gate = Linear(keys[0], width, hidden, ("embed", "mlp"))
        self.up = Linear(keys[1], width, hidden, ("embed", "mlp"))
        deviation = depth_scale * hidden**-0.5
        self.down = Linear(keys[2], hidden, width, ("mlp", "embed"), deviation=deviation)

    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        """x [B,S,D] -> [B,S,D]."""
        gate, up = self.gate(x, context.at("gate")), self.up(x, context.at("up"))
        return self.down(_gated(gate, up), context.at("down"))


@jax.checkpoint
def _gated(gate: jax.Array, up: jax.Array) -> jax.Array:
    """Recomputed in the backward pass: reading two arrays again is cheaper than keeping four."""
    return jax.nn.silu(gate) * up


def rotary_angles(positions: jax.Array, size: int, base: float) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines [B,S,1,N/2] of the rotary embedding (Su 2021, arXiv:2104.09864)."""
    frequency = base ** (-jnp.arange(0, size, 2, dtype=jnp.float32) / size)
    angle = positions[..., None, None].astype(jnp.float32) * frequency
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x: jax.Array, angles: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotates the two halves of each head: x [B,S,H,N] -> [B,S,H,N]."""
    cosine, sine = angles
    wide = x.astype(jnp.float32)
    turned = jnp.roll(wide, x.shape[-1] // 2, axis=-1)  # the other half's number
    cosine = jnp.concatenate([cosine, cosine], axis=-1)
    sine = jnp.concatenate([-sine, sine], axis=-1)
    return (wide * cosine + turned * sine).astype(x.dtype)
