"""The base class of optimizers: gradients to updates, leaf by leaf."""

from __future__ import annotations

import dataclasses

import optax

Axes = tuple[str | None, ...]  # the logical axes of an array
STACK_AXES = ("layers", "adapters")  # axes along which independent arrays are stacked


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """An optimizer; each is a frozen dataclass with a `kind: Literal[...]` and its own constants.

    Its updates are of unit learning rate, to be subtracted; the train step multiplies them by the
    rate and adds decoupled weight decay.
    """

    def transformation(self, axes: Axes) -> optax.GradientTransformation:
        """The Optax transformation of one layer's leaf, of one adapter.

        Its `update` may take `step`, [] int32, the number of steps that the run has taken: the same
        for all leaves, so that a `lax.cond` on it stays one where layers are stacked. A moment or
        factor that has its parameter's axes in their order is sharded along those of full length.

        Args:
          axes: of the leaf, stack axes among them.
        """
        raise NotImplementedError


def is_layer_matrix(axes: Axes) -> bool:
    """Whether a leaf is a matrix of layers: not the embedding, the head or a vector."""
    return "layers" in axes and sum(axis not in STACK_AXES for axis in axes) == 2
