"""Single layers on disk, stacks in memory: reading and saving the parameters of a model.

A checkpoint names single layers (`layers/7/mlp/up/kernel`); a model in memory stacks layers that
are alike (`layers/0-23/mlp/up/kernel`). Both directions run under jit with explicit shardings, so
that no device holds a whole model.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import NamedSharding

from research import sharding, tree
from research.models.transformer import Transformer
from research.tree import Arrays

# abstract single layers by name, with shardings -> their arrays
ReadLayers = Callable[[Mapping[str, jax.ShapeDtypeStruct]], Arrays]


def restore_model(
    abstract_model: Transformer,
    read_layers: ReadLayers,
    mesh: jax.sharding.Mesh,
    rules: sharding.Rules,
) -> Transformer:
    """Fills an abstract model with arrays, sharded over the mesh."""
    shapes = tree.flatten(abstract_model)
    shardings = sharding.shardings(tree.parameter_axes(abstract_model), shapes, mesh, rules)
    return tree.unflatten(abstract_model, restore_stacked(shapes, shardings, read_layers))


def restore_stacked(
    shapes: Mapping[str, Any],
    shardings: Mapping[str, NamedSharding],
    read_layers: ReadLayers,
) -> Arrays:
    """Reads single layers and stacks them under the names of `shapes`."""
    stack = _stack_function(tuple(shapes))
    out_shardings = {name: shardings[name] for name in shapes}
    layers = read_layers(layer_shapes(shapes, shardings))
    return jax.jit(stack, out_shardings=out_shardings)(layers)


@functools.cache  # jit reuses a compiled program for the same function object only
def _stack_function(names: tuple[str, ...]) -> Callable[[Arrays], Arrays]:
    return functools.partial(tree.restack, names=names)


def layer_shapes(
    shapes: Mapping[str, Any], shardings: Mapping[str, NamedSharding]
) -> dict[str, jax.ShapeDtypeStruct]:
    """Abstract single layers of (stacked) shapes, with the shardings that the stacks have."""
    layers = {}
    for name, shape in shapes.items():
        size = shape.shape[1:] if tree.is_stacked(name) else shape.shape
        for layer, layer_sharding in _layer_shardings(name, shardings[name]).items():
            layers[layer] = jax.ShapeDtypeStruct(size, shape.dtype, sharding=layer_sharding)
    return layers


def unstack_for_saving(arrays: Arrays) -> Arrays:
    """Stacked arrays -> single layers, with the shardings that the stacks have."""
    shardings: dict[str, NamedSharding] = {}
    for name, array in arrays.items():
        shardings |= _layer_shardings(name, array.sharding)
    return jax.jit(tree.unstack, out_shardings=shardings)(arrays)


def _layer_shardings(name: str, leaf_sharding: NamedSharding) -> dict[str, NamedSharding]:
    """The sharding of each single layer of a leaf; of the leaf itself when it is not stacked."""
    if not tree.is_stacked(name):
        return {name: leaf_sharding}
    return sharding.layer_shardings(tree.layer_names(name), leaf_sharding)
