"""Optimizers from Optax, told apart from rate and decay.

`make_optimizer(config)` turns gradients into a step of unit rate; the train step multiplies it by
the rate and adds decoupled decay, both arrays, so that a sweep over them compiles once. Stacked
leaves pass through the optimizer layer by layer, and those of a bank adapter by adapter (`vmap`
over these axes), so norms, factored moments and orthogonalised matrices mean what they mean for
one.
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
    """Which optimizer, and the numbers that shape its state."""

    # adamw (arXiv:1711.05101), lion (2302.06675), adafactor (1804.04235), muon (2502.16982)
    name: Literal["adamw", "lion", "adafactor", "muon"] = "adamw"
    # decay of the first moment
    b1: BelowOne = 0.9
    # decay of the second moment; of the sign's momentum for lion
    b2: BelowOne = 0.95
    # added to the root of the second moment
    epsilon: PositiveNumber = 1e-8


Axes = tuple[str | None, ...]  # the logical axes of an array
APART = ("layers", "adapters")  # axes along which arrays of their own lie side by side


def make_optimizer(
    config: OptimizerConfig, axes: Mapping[str, Axes]
) -> optax.GradientTransformation:
    """Gradients `{name: array}` -> the step that gradient ascent of rate 1 would take.

    The state of a leaf stands under the leaf's own name, with its axes of layers and adapters.

    Args:
      axes: the logical axes of each leaf, see `tree.parameter_axes`.
    """

    def init(arrays: Arrays) -> Arrays:
        return {
            name: _apart(axes[name], _transformation(config, axes[name]).init)(array)
            for name, array in arrays.items()
        }

    def update(gradients: Arrays, state: Arrays, arrays: Arrays) -> tuple[Arrays, Arrays]:
        steps, new = {}, {}
        for name, gradient in gradients.items():
            run = _apart(axes[name], _transformation(config, axes[name]).update)
            steps[name], new[name] = run(gradient, state[name], arrays[name])
        return steps, new

    return optax.GradientTransformation(init, update)


def _apart(axes: Axes, run: Callable[..., Any]) -> Callable[..., Any]:
    for axis in axes:
        run = jax.vmap(run) if axis in APART else run
    return run


def _transformation(config: OptimizerConfig, axes: Axes) -> optax.GradientTransformation:
    """What one layer's leaf, of one adapter, goes through."""
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
            if "layers" not in axes or sum(axis not in APART for axis in axes) != 2:
                # the embedding, the head and vectors are Adam's
                return optax.scale_by_adam(config.b1, config.b2, config.epsilon)
            # matrices of layers are orthogonalised and scaled to Adam's usual size of step, so
            # that one rate serves both (arXiv:2502.16982); Optax's own sign is a descent
            muon = optax.contrib.muon(1.0, consistent_rms=0.2, eps=config.epsilon)
            return optax.chain(muon, optax.scale(-1.0))
