"""How the weights of a base are stored, by rule: float32, bfloat16, int8 or nf4.

A base that stays frozen needs no float32: a conversion (`graft convert quantize`) makes one that
is smaller, and its config says so (`ModelConfig.storage`). What a method attaches is float32 on
any base; a weight that is to train must be.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from research import tree
from research.models import sites
from research.models.config import Storage
from research.models.layers import Embedding, Head, Linear
from research.models.quantization import Quantized

LINEARS, ALL = r"layers/\d+/(attention|mlp)/\w+", r".*"
# what `quantize --to` takes: products are stored so, tables in bfloat16
PRESETS: dict[str, tuple[tuple[str, Storage], ...]] = {
    "nf4": ((LINEARS, "nf4"), (ALL, "bfloat16")),
    "int8": ((LINEARS, "int8"), (ALL, "bfloat16")),
    "bfloat16": ((ALL, "bfloat16"),),
}


def store(model: Any, rules: tree.Rules[Storage]) -> None:
    """Turns the kernels of a model into what the rules say, in place; all else stays float32.

    Args:
      rules: ordered (pattern over names of places with a kernel, such as `layers/7/mlp/up`,
        `embedding` and `head`); float32 where none matches.

    Raises:
      ValueError: a pattern that matches nothing, or a matrix that a rule does not fit.
    """
    found = dict(sites.places(model, Linear, Embedding, Head))
    tree.check_patterns([pattern for pattern, _ in rules], found, "model: storage")
    for name, module in found.items():
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
        make = lambda kernel, axes=axes, kind=kind: Quantized(kernel, axes, kind)  # noqa: E731
        module.kernel = jax.vmap(make)(kernel) if tree.is_stacked(name) else make(kernel)


@functools.partial(jax.jit, static_argnames="kind")
def stored(matrix: jax.Array, kind: Storage) -> tuple[dict[str, jax.Array], jax.Array]:
    """One kernel as it is stored, and as it then reads.

    Returns:
      The arrays, by what follows the kernel's name in theirs ("" for a plain one), and the matrix
      in float32.
    """
    if kind == "float32" or kind == "bfloat16":
        plain = matrix.astype(kind)
        return {"": plain}, plain.astype(jnp.float32)
    made = Quantized(matrix, (None, None), kind)
    return {f"/{name}": a for name, a in tree.flatten(made).items()}, made.astype(jnp.float32)


def plain(model: Any) -> Any:
    """A copy with every quantised matrix as float32; of abstract models, shapes will do."""
    is_quantized = lambda node: isinstance(node, Quantized)  # noqa: E731

    def read(node: Any) -> Any:
        if not is_quantized(node):
            return node
        whole = lambda node: node.astype(jnp.float32)  # noqa: E731
        stacked = len(node.codes.shape) == 3
        matrix = (jax.vmap(whole) if stacked else whole)(node)
        return nnx.Param(matrix, axes=node.axes)

    return jax.tree.map(read, model, is_leaf=is_quantized)
