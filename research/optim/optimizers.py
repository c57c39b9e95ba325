"""Every optimizer by its `kind`, and how it is applied to the leaves of a model.

`make_optimizer(config)` turns gradients into updates of unit learning rate; the train step
multiplies them by the rate and adds decoupled weight decay, both arrays, so that a sweep over them
compiles once. Stacked leaves pass through the optimizer layer by layer, and those of a bank adapter
by adapter (`vmap` over these axes), so norms, factored moments and orthogonalized matrices are
those of single layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax

from research.config.schema import by_kind, one_of
from research.optim.adafactor import Adafactor
from research.optim.adamw import AdamW
from research.optim.ademamix import AdEMAMix
from research.optim.base import STACK_AXES, Axes, Optimizer
from research.optim.galore import GaLore
from research.optim.lion import Lion
from research.optim.muon import Muon
from research.tree import Arrays

# a new one is a line here
OPTIMIZERS: dict[str, type[Optimizer]] = by_kind(AdamW, Lion, Adafactor, Muon, AdEMAMix, GaLore)

# a union of them, by `kind`
OptimizerConfig: Any = one_of(OPTIMIZERS.values())


def make_optimizer(
    optimizer: Optimizer, axes: Mapping[str, Axes]
) -> optax.GradientTransformationExtraArgs:
    """The optimizer of `{name: gradient}`: its updates are to be subtracted, times the rate.

    The state of a leaf is under the leaf's own name, with the same stack axes. `update` takes
    `step` too, [] int32, the number of steps that the run has taken.

    Args:
      axes: the logical axes of each leaf, see `tree.parameter_axes`.
    """

    def init(arrays: Arrays) -> Arrays:
        return {
            name: _over_stack(axes[name], optimizer.transformation(axes[name]).init)(array)
            for name, array in arrays.items()
        }

    def update(
        gradients: Arrays, state: Arrays, arrays: Arrays, *, step: jax.Array
    ) -> tuple[Arrays, Arrays]:
        def update_leaf(name: str) -> tuple[jax.Array, Any]:
            one = optax.with_extra_args_support(optimizer.transformation(axes[name]))

            def update_layer(gradient: jax.Array, state: Any, array: jax.Array) -> Any:
                return one.update(gradient, state, array, step=step)  # the step is not mapped

            layers = _over_stack(axes[name], update_layer)
            return layers(gradients[name], state[name], arrays[name])

        leaves = {name: update_leaf(name) for name in gradients}
        updates = {name: leaf[0] for name, leaf in leaves.items()}
        return updates, {name: leaf[1] for name, leaf in leaves.items()}

    return optax.GradientTransformationExtraArgs(init, update)


def _over_stack(axes: Axes, function: Callable[..., Any]) -> Callable[..., Any]:
    """Maps a function of one layer's leaf, of one adapter, over the stack axes."""
    for axis in axes:
        function = jax.vmap(function) if axis in STACK_AXES else function
    return function
