"""What a run costs, in closed form: parameters, FLOPs, bytes.

Model FLOPs count each needed product once, attention over the causal half of its square; what
rematerialisation computes again is not counted. XLA's own `cost_analysis` counts a scan's body
once, so it serves as a check on unrolled models only (tests/test_cost.py).
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Collection
from typing import Any

import jax

from research import tree
from research.models import storage
from research.models.config import ModelConfig
from research.models.transformer import Transformer


def parameter_count(config: ModelConfig) -> int:
    """Parameters of the base model; nothing is computed."""
    return count(jax.eval_shape(lambda key: Transformer(key, config), jax.random.key(0)))


@dataclasses.dataclass(frozen=True)
class Flops:
    """FLOPs for one token of a sequence."""

    forward: float
    backward: float

    @property
    def train(self) -> float:
        return self.forward + self.backward


def flops_per_token(
    config: ModelConfig, model: Any, trainable: Collection[str], length: int
) -> Flops:
    """FLOPs a token of a model (abstract will do) with what trains, in sequences of `length`.

    A product of x with W costs 2|W| forward, 2|W| for the gradient of x where something below it
    trains, and 2|W| for the gradient of W where W trains.
    """
    chosen = set(trainable)
    shapes = tree.unstack_shapes(tree.flatten(jax.eval_shape(storage.plain, model)))
    trains = {layer for name in chosen for layer in tree.layer_names(name)}
    lowest = min((_depth(name, config.layers) for name in trains), default=config.layers + 1)
    forward = backward = 0.0
    for name, shape in shapes.items():
        if len(shape.shape) != 2:
            continue
        size, depth = math.prod(shape.shape), _depth(name, config.layers)
        if name == "positions/kernel":
            continue  # a look-up
        if name == "embedding/kernel":
            if not config.tied:
                continue
            depth = config.layers  # the head's product with the same table
        forward += 2 * size
        # the gradient of x is needed above the lowest trained layer and inside it
        backward += 2 * size * ((depth >= lowest) + (name in trains))
    for layer in range(config.layers):
        window = config.window(layer)
        seen = (length + 1) / 2 if not window or window >= length else window
        attention = 4 * seen * config.heads * config.size
        forward += attention
        backward += 2 * attention * (layer >= lowest)
    return Flops(forward, backward)


def _depth(name: str, layers: int) -> int:
    """Where in the stack a parameter stands: -1 embedding, layer number, then norm and head."""
    match = re.match(r"layers/(\d+)/", name)
    if match:
        return int(match.group(1))
    return -1 if name.startswith("embedding") else layers


def count(model: Any, names: Collection[str] | None = None) -> int:
    """Number of parameters in a model (abstract will do), or in the named leaves of it."""
    leaves = tree.flatten(jax.eval_shape(storage.plain, model))
    return sum(math.prod(leaves[name].shape) for name in (leaves if names is None else names))
