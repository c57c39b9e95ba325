"""The matrix product of every linear, with its gradients written out.

All three products of a linear (the output, the gradients of input and weight) take operands in the
activations' type and sum in float32, as matrix units do. They are written out for the CPU, where
the form of a product decides which kernel XLA takes (docs/results/performance_notebook.md has
figures). The price: reverse-mode differentiation works, also twice, but forward mode (`jax.jvp`)
does not.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from research import sharding
from research.models.quantized_matrix import QuantizedMatrix, quantized_product

# the checkpoint name of what `remat: products` keeps
PRODUCT = "product"
# rows of a product in bfloat16, at least, on CPU
_FEW_ROWS = 4
ROWS, COLUMNS = (((0,), (0,)), ((), ())), (((1,), (1,)), ((), ()))


def matmul(
    x: jax.Array, kernel: jax.Array | QuantizedMatrix, dtype: jnp.dtype | None = None
) -> jax.Array:
    """x [...,I] @ kernel [I,O] -> [...,O] in `dtype`, or in x's type.

    Leading axes are flattened first: on CPU the gradients' products of two matrices are half as
    fast again as those with a batch axis, elsewhere they are no slower.
    """
    product = quantized_product if isinstance(kernel, QuantizedMatrix) else _product
    y = product(x.reshape(-1, x.shape[-1]), kernel, jnp.dtype(dtype or x.dtype))
    return checkpoint_name(y, PRODUCT).reshape(*x.shape[:-1], kernel.shape[-1])


def matmul_transposed(x: jax.Array, table: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """x [...,I] @ table.T for table [O,I] -> [...,O], without transposing the table in memory."""
    y = _transposed_product(x.reshape(-1, x.shape[-1]), table, jnp.dtype(dtype))
    return y.reshape(*x.shape[:-1], table.shape[0])


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _product(x: jax.Array, kernel: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """x [T,I], kernel [I,O] -> [T,O]."""
    rows = _with_more_rows(x)
    y = jnp.matmul(rows, kernel.astype(x.dtype), preferred_element_type=jnp.float32)
    return _first_rows(y, len(x)).astype(dtype)


def _with_more_rows(x: jax.Array) -> jax.Array:
    """x [T,I] with rows of zeros up to four, where those cost nothing.

    One row of bfloat16 is none of a CPU's matrix products: SmolLM2's take eight times as long as
    those of four rows.
    """
    if x.dtype != jnp.bfloat16 or len(x) >= _FEW_ROWS or sharding.platform() != "cpu":
        return x
    return jnp.pad(x, ((0, _FEW_ROWS - len(x)), (0, 0)))


def _first_rows(y: jax.Array, count: int) -> jax.Array:
    """Without what `_with_more_rows` added, which XLA would else leave out of the product too."""
    return y if len(y) == count else jax.lax.optimization_barrier(y)[:count]


def _product_forward(x, kernel, dtype):
    return _product(x, kernel, dtype), (x, kernel)


def _product_backward(dtype, residuals, dy):
    x, kernel = residuals
    dy = dy.astype(x.dtype)
    dx = jax.lax.dot_general(
        dy, kernel.astype(x.dtype), COLUMNS, preferred_element_type=jnp.float32
    )
    return dx.astype(x.dtype), outer(x, dy).astype(kernel.dtype)


_product.defvjp(_product_forward, _product_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _transposed_product(x: jax.Array, table: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """x [T,I], table [O,I] -> [T,O]."""
    table, rows = table.astype(x.dtype), _with_more_rows(x)
    y = jax.lax.dot_general(rows, table, COLUMNS, preferred_element_type=jnp.float32)
    return _first_rows(y, len(x)).astype(dtype)


def _transposed_forward(x, table, dtype):
    return _transposed_product(x, table, dtype), (x, table)


def _transposed_backward(dtype, residuals, dy):
    x, table = residuals
    dy = dy.astype(x.dtype)
    dx = jnp.matmul(dy, table.astype(x.dtype), preferred_element_type=jnp.float32)
    return dx.astype(x.dtype), outer(dy, x).astype(table.dtype)


_transposed_product.defvjp(_transposed_forward, _transposed_backward)


@jax.custom_vjp
def scale_features(y: jax.Array, factor: jax.Array) -> jax.Array:
    """y [...,O] * factor [O], in y's type.

    The factor keeps its own type: near 1, bfloat16 has nothing finer than 1/128. Its gradient is
    summed in float32, where JAX's own sums in y's type. On CPU that sum is written as a product: as
    a sum it costs as much as LoRA's products.
    """
    return (y.astype(jnp.float32) * factor).astype(y.dtype)


def _scale_features_forward(y, factor):
    return scale_features(y, factor), (y, factor)


def _scale_features_backward(residuals, dy):
    y, factor = residuals
    if sharding.platform() == "cpu":
        y_rows, dy_rows = (array.reshape(-1, array.shape[-1]) for array in (y, dy))
        dfactor = jnp.einsum("to,to->o", y_rows, dy_rows, preferred_element_type=jnp.float32)
    else:
        wide = y.astype(jnp.float32) * dy.astype(jnp.float32)
        dfactor = jnp.sum(wide, axis=range(y.ndim - 1))
    return scale_features(dy, factor), dfactor.astype(factor.dtype)


scale_features.defvjp(_scale_features_forward, _scale_features_backward)


def outer(a: jax.Array, b: jax.Array) -> jax.Array:
    """The sum over rows of outer products: a [T,I], b [T,O] -> a.T @ b [I,O] in float32."""
    # selected while tracing, so that XLA's partitioner sees no conditional
    return _outer_on_cpu(a, b) if sharding.platform() == "cpu" else _plain_outer(a, b)


def _plain_outer(a: jax.Array, b: jax.Array) -> jax.Array:
    return jax.lax.dot_general(a, b, ROWS, preferred_element_type=jnp.float32)


def _outer_on_cpu(a: jax.Array, b: jax.Array) -> jax.Array:
    (rows, inputs), outputs = a.shape, b.shape[1]
    if a.dtype == jnp.bfloat16 and rows % 2:
        return _plain_outer(a.astype(jnp.float32), b.astype(jnp.float32))
    if a.dtype == jnp.bfloat16:
        # XLA folds a plain transpose into the product, which then runs in float32 at half the
        # speed; it keeps one through a split axis
        transposed = a.reshape(rows // 2, 2, inputs).transpose(2, 0, 1).reshape(inputs, rows)
        product = jnp.matmul(transposed, b, preferred_element_type=jnp.float32)
        # and the barrier keeps a later transpose out of the product, for which XLA has no kernel
        return jax.lax.optimization_barrier(product)
    if a.dtype == jnp.float32 and 4 * outputs <= inputs <= 4 * rows:
        # a thin result (LoRA's): the kernel is fast along the second axis, so the longer goes there
        return jax.lax.optimization_barrier(_plain_outer(b, a)).T
    return _plain_outer(a, b)
