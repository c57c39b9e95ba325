"""Conversion of a base's weights, by rule: float32, bfloat16, int8 or nf4.

A base that stays frozen needs no float32: a conversion (`graft convert quantize`) makes a smaller
one, and its config says so (`ModelConfig.storage`). What a method attaches is float32 on any base;
a weight that trains must be.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from research import tree
from research.models import sites
from research.models.config import StorageKind
from research.models.layers import Embedding, Head, Linear
from research.models.quantized_matrix import QuantizedMatrix

LINEARS, ALL = r"layers/\d+/(attention|mlp)/\w+", r".*"
# what `graft convert quantize --to` takes: linears in the type named, tables in bfloat16
PRESETS: dict[str, tuple[tuple[str, StorageKind], ...]] = {
    "nf4": ((LINEARS, "nf4"), (ALL, "bfloat16")),
    "int8": ((LINEARS, "int8"), (ALL, "bfloat16")),
    "bfloat16": ((ALL, "bfloat16"),),
}


def quantize(model: Any, rules: tree.Rules[StorageKind]) -> None:
    """Converts the kernels of a model in place, by rules; all else stays float32.

    Args:
      rules: ordered (pattern over names of modules with a kernel, such as `layers/7/mlp/up`,
        `embedding` and `head`); float32 where none matches.

    Raises:
      ValueError: a pattern that matches nothing, or a matrix that a rule does not fit.
    """
    modules = dict(sites.places(model, Linear, Embedding, Head))
    tree.check_patterns([pattern for pattern, _ in rules], modules, "model: storage")
    for name, module in modules.items():
        kind = tree.match(rules, name, "float32")
        if kind == "float32" or module.kernel is None:
            continue
        kernel, axes = module.kernel[...], module.kernel.get_metadata()["axes"]
        if kind == "bfloat16":
            module.kernel = nnx.Param(kernel.astype(jnp.bfloat16), axes=axes)
            continue
        if not isinstance(module, Linear):
            raise ValueError(
                f"model: storage: {name} is looked up or shared; {kind} is for linears"
            )
        convert = functools.partial(QuantizedMatrix, axes=axes, kind=kind)
        module.kernel = jax.vmap(convert)(kernel) if tree.is_stacked(name) else convert(kernel)


@functools.partial(jax.jit, static_argnames="kind")
def quantize_matrix(matrix: jax.Array, kind: StorageKind) -> tuple[dict[str, jax.Array], jax.Array]:
    """One kernel as it is stored, and its value then.

    Returns:
      The arrays, by the suffix of their name after the kernel's ("" for a plain one), and the
      matrix in float32.
    """
    if kind == "float32" or kind == "bfloat16":
        cast = matrix.astype(kind)
        return {"": cast}, cast.astype(jnp.float32)
    quantized = QuantizedMatrix(matrix, (None, None), kind)
    parts = {f"/{name}": array for name, array in tree.flatten(quantized).items()}
    return parts, quantized.astype(jnp.float32)


def dequantize(model: Any) -> Any:
    """A copy with every quantized matrix in float32; abstract models will do."""
    return jax.tree.map(_dequantize_node, model, is_leaf=_is_quantized)


def _is_quantized(node: Any) -> bool:
    return isinstance(node, QuantizedMatrix)


def _dequantize_node(node: Any) -> Any:
    if not _is_quantized(node):
        return node
    is_stack = len(node.codes.shape) == 3
    matrix = (jax.vmap(_in_float32) if is_stack else _in_float32)(node)
    return nnx.Param(matrix, axes=node.axes)


def _in_float32(matrix: QuantizedMatrix) -> jax.Array:
    return matrix.astype(jnp.float32)
