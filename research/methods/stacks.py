"""Stacks of alike layers, derived from a config and a method without computing anything."""

from __future__ import annotations

import functools
from typing import Any

import jax

from research import tree
from research.methods.attach import WEIGHTED, trainable
from research.methods.base import Method
from research.models.config import ModelConfig
from research.models.sites import places
from research.models.transformer import Transformer


def single_layers(config: ModelConfig) -> tuple[str, ...]:
    """Stacks of one layer each, whose names are those of rules and files."""
    return tuple(tree.stack_key(layer, 1) for layer in range(config.layers))


def abstract(
    config: ModelConfig, method: Method, stacks: tuple[str, ...] | None = None
) -> Transformer:
    """The shapes of a model with a method attached; nothing is computed.

    Args:
      stacks: the keys of stacks; None: the fewest that the layers can form.
    """
    stacks = derive_stacks(config, method) if stacks is None else stacks
    return jax.tree.map(lambda leaf: leaf, _trace(config, method, stacks))


@functools.lru_cache(maxsize=64)  # a model of many single layers takes long to trace
def _trace(config: ModelConfig, method: Method, stacks: tuple[str, ...]) -> Transformer:
    def build(key: jax.Array) -> Transformer:
        return method.attach(Transformer(key, config, stacks), key)

    return jax.eval_shape(build, jax.random.key(0))


def smaller_sides(plain: Transformer) -> dict[str, int]:
    """The smaller side of every weight that has a site, by place; of a base in single layers."""
    sides = {}
    for name, module in places(plain, *WEIGHTED):
        (place,) = tree.layer_names(name)
        is_tied = module.kernel is None
        sides[place] = min((plain.embedding if is_tied else module).kernel.shape[-2:])
    return sides


def derive_stacks(config: ModelConfig, method: Method) -> tuple[str, ...]:
    """The fewest stacks that the layers can form with this method, such as `("0-21", "22-23")`.

    Layers share a stack when their modules, sites, shapes and trainability are alike. That is
    read off an abstract model of single layers, so it needs no special cases.

    Raises:
      ValueError: from the method, when it does not fit the model; nothing is computed before.
    """
    single = single_layers(config)
    probe = abstract(config, method, single)
    trainable_names = set(trainable(probe, method))

    def signature(name: str) -> Any:
        leaves, structure = jax.tree.flatten(probe.layers[name])
        parameters = tree.flatten(probe.layers[name])
        trains = tuple(f"layers/{name}/{leaf}" in trainable_names for leaf in parameters)
        return structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves), trains

    signatures = [signature(name) for name in single]

    def alike(i: int, j: int) -> bool:
        return signatures[i] == signatures[j]

    return tree.group(config.layers, alike, config.max_scan_layers)
