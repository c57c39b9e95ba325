"""Optax optimizers, apart from learning rate and weight decay.

`make_optimizer(config)` turns gradients into updates of unit learning rate; the train step
multiplies them by the rate and adds decoupled weight decay, both arrays, so that a sweep over them
compiles once. Stacked leaves pass through the optimizer layer by layer, and those of a bank adapter
by adapter (`vmap` over these axes), so norms, factored moments and orthogonalized matrices are
those of single layers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import optax

from research.config.schema import BelowOne, PositiveNumber
from research.tree import Arrays


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer and its constants."""

    # adamw (arXiv:1711.05101), lion (2302.06675), adafactor (1804.04235), muon (2502.16982)
    name: Literal["adamw", "lion", "adafactor", "muon"] = "adamw"
    # decay of the first moment
    b1: BelowOne = 0.9
    # decay of the second moment; of the sign's momentum for lion
    b2: BelowOne = 0.95
    # added to the root of the second moment
    epsilon: PositiveNumber = 1e-8


Axes = tuple[str | None, ...]  # the logical axes of an array
STACK_AXES = ("layers", "adapters")  # axes along which independent arrays are stacked


def make_optimizer(
    config: OptimizerConfig, axes: Mapping[str, Axes]
) -> optax.GradientTransformation:
    """The optimizer of `{name: gradient}`: its updates are to be subtracted, times the rate.

    The state of a leaf is under the leaf's own name, with the same stack axes.

    Args:
      axes: the logical axes of each leaf, see `tree.parameter_axes`.
    """

    def init(arrays: Arrays) -> Arrays:
        return {
            name: _over_stack(axes[name], _transformation(config, axes[name]).init)(array)
            for name, array in arrays.items()
        }

    def update(gradients: Arrays, state: Arrays, arrays: Arrays) -> tuple[Arrays, Arrays]:
        updates, new_state = {}, {}
        for name, gradient in gradients.items():
            update_leaf = _over_stack(axes[name], _transformation(config, axes[name]).update)
            updates[name], new_state[name] = update_leaf(gradient, state[name], arrays[name])
        return updates, new_state

    return optax.GradientTransformation(init, update)


def _over_stack(axes: Axes, function: Callable[..., Any]) -> Callable[..., Any]:
    """Maps a function of one layer's leaf, of one adapter, over the stack axes."""
    for axis in axes:
        function = jax.vmap(function) if axis in STACK_AXES else function
    return function


def _transformation(config: OptimizerConfig, axes: Axes) -> optax.GradientTransformation:
    """The Optax transformation of one layer's leaf, of one adapter."""
    match config.name:
        case "adamw":
            return optax.scale_by_adam(config.b1, config.b2, config.epsilon)
        case "lion":
            return optax.scale_by_lion(config.b1, config.b2)
        case "adafactor":
            return optax.chain(
                optax.scale_by_factored_rms(),
                optax.clip_by_block_rms(1.0),
                optax.scale_by_param_block_rms(),
            )
        case "muon":
            if "layers" not in axes or sum(axis not in STACK_AXES for axis in axes) != 2:
                # the embedding, the head and vectors use Adam
                return optax.scale_by_adam(config.b1, config.b2, config.epsilon)
            # matrices of layers are orthogonalized and scaled to the usual size of Adam's updates,
            # so that one rate serves both (arXiv:2502.16982); Optax's muon has the opposite sign
            muon = optax.contrib.muon(1.0, consistent_rms=0.2, eps=config.epsilon)
            return optax.chain(muon, optax.scale(-1.0))
