"""Optimizers from Optax, told apart from rate and decay.

`direction(config)` turns gradients into a step of unit rate; the train step multiplies it by the
rate and adds decoupled decay, both arrays, so that a sweep over them compiles once. Stacked leaves
pass through the optimizer layer by layer (`vmap` over the layer axis), so norms, factored moments
and orthogonalised matrices mean what they mean for one layer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import optax

from research import tree
from research.config import BelowOne, PositiveNumber
from research.tree import Arrays


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Which optimizer, and the numbers that shape its state."""

    # adamw (arXiv:1711.05101), lion (2302.06675), adafactor (1804.04235), muon (2502.16982)
    name: Literal["adamw", "lion", "adafactor", "muon"] = "adamw"
    # decay of the first moment
    b1: BelowOne = 0.9
    # decay of the second moment; of the sign's momentum for lion
    b2: BelowOne = 0.95
    # added to the root of the second moment
    epsilon: PositiveNumber = 1e-8


def direction(config: OptimizerConfig) -> optax.GradientTransformation:
    """Gradients `{name: array}` -> the step that gradient ascent of rate 1 would take.

    The state of a leaf stands under the leaf's own name, with the layer axis that the leaf has.
    """

    def init(arrays: Arrays) -> Arrays:
        return {
            name: _over_layers(name, _transformation(config, name, array).init)(array)
            for name, array in arrays.items()
        }

    def update(gradients: Arrays, state: Arrays, arrays: Arrays) -> tuple[Arrays, Arrays]:
        steps, new = {}, {}
        for name, gradient in gradients.items():
            run = _over_layers(name, _transformation(config, name, gradient).update)
            steps[name], new[name] = run(gradient, state[name], arrays[name])
        return steps, new

    return optax.GradientTransformation(init, update)


def _over_layers(name: str, run: Callable[..., Any]) -> Callable[..., Any]:
    return jax.vmap(run) if tree.is_stacked(name) else run


def _transformation(config: OptimizerConfig, name: str, array: Any) -> optax.GradientTransformation:
    """What one layer's leaf goes through."""
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
            if not (tree.is_stacked(name) and array.ndim == 3):
                # the embedding, the head and vectors are Adam's
                return optax.scale_by_adam(config.b1, config.b2, config.epsilon)
            # matrices of layers are orthogonalised and scaled to Adam's usual size of step, so
            # that one rate serves both (arXiv:2502.16982); Optax's own sign is a descent
            muon = optax.contrib.muon(1.0, consistent_rms=0.2, eps=config.epsilon)
            return optax.chain(muon, optax.scale(-1.0))
