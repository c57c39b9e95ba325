"""The small modules of a decoder: linear, norm, embedding, positions and head."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec

from research import sharding
from research.models import sites
from research.models.attention import soft_cap
from research.models.config import ModelConfig
from research.models.products import matmul, matmul_transposed
from research.models.quantized_matrix import QuantizedMatrix
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
        self.axes = axes
        self.kernel: nnx.Param | QuantizedMatrix = nnx.data(nnx.Param(kernel, axes=axes))
        self.bias = nnx.Param(jnp.zeros(outputs), axes=axes[1:]) if bias else nnx.data(None)
        self.site = sites.empty()

    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        """x [B,S,I] -> [B,S,O]."""
        weight = self.weight()

        def product(x: jax.Array) -> jax.Array:
            y = matmul(x, weight.kernel)
            return y if weight.bias is None else y + weight.bias.astype(y.dtype)

        return sites.apply_around(self.site, x, product, weight, context)

    def weight(self) -> Weight:
        kernel = self.kernel if isinstance(self.kernel, QuantizedMatrix) else self.kernel[...]
        return Weight(kernel, None if self.bias is None else self.bias[...])


class Norm(nnx.Module):
    """Scales to unit mean square, or with `layer` to zero mean and unit variance, in float32.

    Zhang and Sennrich 2019 (arXiv:1910.07467); Ba 2016 (arXiv:1607.06450).
    """

    def __init__(self, size: int, config: ModelConfig):
        self.scale = nnx.Param(jnp.full(size, 1 - config.norm_offset), axes=("norm",))
        layer = config.norm == "layer"
        self.bias = nnx.Param(jnp.zeros(size), axes=("norm",)) if layer else nnx.data(None)
        self.epsilon, self.offset = config.norm_epsilon, config.norm_offset

    def __call__(self, x: jax.Array) -> jax.Array:
        """x [...,D] -> [...,D]."""
        wide = x.astype(jnp.float32)
        if self.bias is not None:
            wide = wide - jnp.mean(wide, axis=-1, keepdims=True)
        scale = self.scale[...] + self.offset if self.offset else self.scale[...]
        mean_square = jnp.mean(wide * wide, axis=-1, keepdims=True)
        y = wide * jax.lax.rsqrt(mean_square + self.epsilon) * scale
        return (y if self.bias is None else y + self.bias[...]).astype(x.dtype)


class Embedding(nnx.Module):
    """A table of token vectors; its site may put prompt vectors in front."""

    def __init__(self, key: jax.Array, vocabulary: int, width: int, scale: float = 1.0):
        table = width**-0.5 * jax.random.truncated_normal(key, -3, 3, (vocabulary, width))
        self.kernel = nnx.Param(table, axes=("vocabulary", "embed"))
        self.site = sites.empty()
        self.scale = scale

    def __call__(self, tokens: jax.Array, dtype: jnp.dtype, context: Context) -> jax.Array:
        """tokens [B,S] -> [B,S,D], or [B,P+S,D] with P prompt tokens attached."""
        table = self.kernel[...]
        y = _add_noise(_look_up(table, tokens, dtype), context)
        y = sites.apply(self.site, tokens, y, Weight(table), context)
        return y * jnp.asarray(self.scale, dtype) if self.scale != 1 else y


def _add_noise(y: jax.Array, context: Context) -> jax.Array:
    """y [B,S,D] with uniform noise of each row's key, up to noise / sqrt(D) (`Context.noise`)."""
    if context.noise is None:
        return y
    if context.keys is None:
        raise ValueError("noise on embeddings needs random keys: give `Context.keys`, one a row")

    def uniform(key: jax.Array) -> jax.Array:
        return jax.random.uniform(key, y.shape[1:], y.dtype, -1, 1)

    bound = (context.noise * y.shape[-1] ** -0.5).astype(y.dtype)
    return y + bound[..., None] * jax.vmap(uniform)(context.keys)


def _look_up(table: jax.Array, tokens: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """table [V,D], tokens [B,S] -> [B,S,D], without gathering the table.

    Where devices share its columns, each looks up its own columns for the tokens of all of them,
    and they exchange the results: as much as one activation, where whole rows of a large table
    would be the largest array of a step.
    """
    columns = sharding.mesh_axes("embed")
    if not columns:
        return table[tokens].astype(dtype)
    rows = tuple(axis for axis in sharding.mesh_axes("batch") if axis not in columns)
    y = table.astype(dtype)[tokens]
    y = jax.lax.with_sharding_constraint(y, PartitionSpec(rows, None, columns))
    return sharding.constrain(y, ("batch", "sequence", None))


class Positions(nnx.Module):
    """A table of learned position vectors (Radford 2019, GPT-2)."""

    def __init__(self, key: jax.Array, length: int, width: int):
        table = 0.02 * jax.random.truncated_normal(key, -3, 3, (length, width))
        self.kernel = nnx.Param(table, axes=(None, "embed"))

    def __call__(self, positions: jax.Array, dtype: jnp.dtype) -> jax.Array:
        """positions [B,S], each less than the table's length -> [B,S,D]."""
        return self.kernel[...][positions].astype(dtype)


class Head(nnx.Module):
    """The vocabulary projection. A tied head has no kernel: its caller passes the embedding's."""

    def __init__(self, key: jax.Array, config: ModelConfig):
        self.kernel = nnx.data(None)
        if not config.tie_embeddings:
            shape = (config.width, config.vocabulary)
            kernel = config.width**-0.5 * jax.random.truncated_normal(key, -3, 3, shape)
            self.kernel = nnx.Param(kernel, axes=("embed", "vocabulary"))
        self.site = sites.empty()
        self.cap = config.logit_cap

    def __call__(self, x: jax.Array, table: jax.Array | None, context: Context) -> jax.Array:
        """x [B,S,D], table [V,D] (the embedding's, if tied) -> logits [B,S,V] in float32.

        A delta that `replaces` gives its outputs [B,S,C] instead, uncapped.
        """
        for name, delta in self.site.items():
            if delta.replaces:
                return delta(x, None, None, context.at(name))
        if table is not None:
            y, kernel = matmul_transposed(x, table, jnp.float32), table.T
        else:
            kernel = self.kernel[...]
            y = matmul(x, kernel, jnp.float32)
        y = sites.apply(self.site, x, y, Weight(kernel), context).astype(jnp.float32)
        return soft_cap(y, self.cap)
