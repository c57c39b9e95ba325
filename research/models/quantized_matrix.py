"""A frozen matrix in 4 or 8 bits, and its product.

nf4 is QLoRA's 4-bit NormalFloat with double quantization (Dettmers 2023, arXiv:2305.14314): the 16
quantiles of a normal distribution, scaled by the largest number of each tile of a column, and
those scales in 8 bits in their turn. int8 has one scale a column. Qwix quantizes; dequantizing is
written out here, because a table of 16 numbers is looked up fastest by four rounds of selection
(a gather of single numbers is slow on accelerators). `research.models.quantization` converts a
whole model.
"""

from __future__ import annotations

import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from research import sharding

QuantizedKind = Literal["nf4", "int8"]
# rows of a column that share a scale, and scales of a row that share theirs, at most
TILE, SCALES_TILE = 64, 256
SMALLEST_TILE = 16


class QuantizedMatrix(nnx.Module):
    """A matrix [I,O] = value(codes) * scales, with T tiles in each column.

    Attributes:
      codes: nf4: [I/2,O] uint8, two rows in a byte, the first in its low half; int8: [I,O].
      scales: [T,O]; nf4: int8, to be multiplied by `steps` [T,G], of G groups of columns, and added
        to `mean` []; int8: float32.
    """

    def __init__(self, matrix: jax.Array, axes: tuple[str | None, ...], kind: QuantizedKind):
        """Raises ValueError for a matrix that cannot be cut into tiles."""
        import qwix  # half a second: only conversions and abstract models come here

        rows, columns = matrix.shape
        tile = _divisor(rows, TILE) if kind == "nf4" else rows
        if kind == "nf4" and (tile < SMALLEST_TILE or rows % 2):
            raise ValueError(
                f"a matrix of {rows} x {columns} cannot be stored as nf4: {rows} is not a "
                f"multiple of any even number from {SMALLEST_TILE} to {TILE}"
            )
        matrix = matrix.astype(jnp.float32)
        quantized = qwix.quantize(matrix, kind, channelwise_axes=(1,), tiled_axes={0: tile})
        self.kind, self.axes = kind, tuple(axes)
        self.steps, self.mean = nnx.data(None), nnx.data(None)
        if kind == "int8":
            self.codes = nnx.Param(quantized.qvalue, axes=axes)
            self.scales = nnx.Param(quantized.scale, axes=(None, axes[1]))
            return
        codes = quantized.qvalue.astype(jnp.uint8).reshape(rows // 2, 2, columns)
        self.codes = nnx.Param(codes[:, 0] | (codes[:, 1] << 4), axes=axes)
        # a tile of zeros has no scale of its own, and any will do
        largest = jnp.abs(matrix).reshape(-1, tile, columns).max(axis=1)
        scales = jnp.where(largest > 0, quantized.scale, jnp.mean(largest))
        mean = jnp.mean(scales)
        groups = {1: _divisor(columns, SCALES_TILE)}
        second = qwix.quantize(scales - mean, "int8", channelwise_axes=(0,), tiled_axes=groups)
        self.scales = nnx.Param(second.qvalue, axes=(None, axes[1]))
        self.steps = nnx.Param(second.scale, axes=(None, None))
        self.mean = nnx.Param(mean, axes=())

    @property
    def shape(self) -> tuple[int, ...]:
        """[...,I,O], the shape of the matrix."""
        *leading, rows, columns = self.codes.shape
        return (*leading, 2 * rows if self.kind == "nf4" else rows, columns)

    def astype(self, dtype: jnp.dtype) -> jax.Array:
        """The matrix [I,O] itself."""
        # codes are gathered over `fsdp`, as any weight is before its use
        gathered_axes = tuple(None if axis == "embed" else axis for axis in self.axes)
        codes, scales = sharding.constrain(self.codes[...], gathered_axes), self.scales[...]
        if self.kind == "nf4":
            codes = jnp.stack([codes & 15, codes >> 4], axis=1).reshape(self.shape)
            tiles, columns = scales.shape
            groups = scales.reshape(tiles, self.steps.shape[1], -1) * self.steps[...][..., None]
            scales = groups.reshape(tiles, columns) + self.mean[...]
            values = _normal_floats(codes)
        else:
            values = codes.astype(jnp.float32)
        rows, columns = self.shape
        matrix = values.reshape(scales.shape[0], -1, columns) * scales[:, None]
        return matrix.reshape(rows, columns).astype(dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def quantized_product(x: jax.Array, kernel: QuantizedMatrix, dtype: jnp.dtype) -> jax.Array:
    """x [T,I] @ kernel [I,O] -> [T,O]. The backward pass dequantizes again, so that no
    matrix is kept."""
    wide = jnp.matmul(x, kernel.astype(x.dtype), preferred_element_type=jnp.float32)
    return wide.astype(dtype)


def _forward(x, kernel, dtype):
    return quantized_product(x, kernel, dtype), (kernel, jnp.zeros((), x.dtype))


def _backward(dtype, residuals, dy):
    kernel, like = residuals
    dy = dy.astype(like.dtype)
    dx = jax.lax.dot_general(
        dy, kernel.astype(like.dtype), (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32
    )
    return dx.astype(like.dtype), None  # frozen


quantized_product.defvjp(_forward, _backward)


def _divisor(size: int, limit: int) -> int:
    """The largest divisor of `size` up to `limit`."""
    return next(n for n in range(min(size, limit), 0, -1) if size % n == 0)


# the values of codes 0 to 15 (QLoRA, appendix E)
NORMAL_FLOATS = np.asarray(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ],
    np.float32,
)


def _normal_floats(codes: jax.Array) -> jax.Array:
    """The values of codes: each bit selects half of the candidates."""
    candidates = [jnp.asarray(value) for value in NORMAL_FLOATS]
    for bit in range(4):
        is_set = (codes >> bit) & 1 != 0
        pairs = zip(candidates[::2], candidates[1::2], strict=True)
        candidates = [jnp.where(is_set, high, low) for low, high in pairs]
    return candidates[0]
