"""GaLore: Adam in a small subspace of each gradient (Zhao 2024, arXiv:2403.03507)."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from research.config.schema import BelowOne, Positive, PositiveNumber
from research.models.factorizations import svd
from research.optim.base import Axes, Optimizer, is_layer_matrix


class GaLoreState(NamedTuple):
    """State of a weight [M,N].

    Attributes:
      basis: orthonormal: columns [M,R] where M <= N, else rows [R,N].
      adam: Adam's state of the gradient in the basis, [R,N] or [M,R].
    """

    basis: jax.Array
    adam: Any


@dataclasses.dataclass(frozen=True)
class GaLore(Optimizer):
    """Adam for each layer's matrix in the R leading singular directions of its gradient.

    All numbers of a weight train, with moments of R / min(M, N) of its size; Adam for the
    embedding, the head, vectors, and matrices with a side of R or less. Moments are kept when the
    subspace is chosen anew, as in the paper. A step that is skipped as not finite chooses none; if
    it is the run's first, the subspace is that of the first R axes until the next choice.
    """

    # rank R of the subspace
    projection_rank: Positive = 128
    # steps between two choices of the subspace, each a singular value decomposition
    every: Positive = 200
    # the update is multiplied by it
    scale: PositiveNumber = 0.25
    # decays of the moments
    b1: BelowOne = 0.9
    b2: BelowOne = 0.999
    # added to the root of the second moment
    epsilon: PositiveNumber = 1e-8
    kind: Literal["galore"] = "galore"

    def transformation(self, axes: Axes) -> optax.GradientTransformation:
        adam = optax.scale_by_adam(self.b1, self.b2, self.epsilon)
        if not is_layer_matrix(axes):
            return adam

        def init(weight: jax.Array) -> Any:
            if self.projection_rank >= min(weight.shape):
                return adam.init(weight)
            basis = jnp.eye(weight.shape[0], self.projection_rank)
            if weight.shape[0] > weight.shape[1]:
                basis = jnp.eye(self.projection_rank, weight.shape[1])
            return GaLoreState(basis, adam.init(_project(weight, basis)))

        def update(
            gradient: jax.Array, state: Any, weight: Any = None, *, step: jax.Array
        ) -> tuple[jax.Array, Any]:
            if self.projection_rank >= min(gradient.shape):
                return adam.update(gradient, state)
            basis = jax.lax.cond(
                step % self.every == 0, self._choose, lambda _, basis: basis, gradient, state.basis
            )
            compact, adam_state = adam.update(_project(gradient, basis), state.adam)
            is_left = basis.shape[0] == gradient.shape[0]
            full = basis @ compact if is_left else compact @ basis
            return self.scale * full, GaLoreState(basis, adam_state)

        return optax.GradientTransformationExtraArgs(init, update)

    def _choose(self, gradient: jax.Array, basis: jax.Array) -> jax.Array:
        """The leading singular vectors, of the shorter side."""
        left, _, right = svd(gradient)
        return (
            left[:, : self.projection_rank]
            if basis.shape[0] == gradient.shape[0]
            else right[: self.projection_rank]
        )


def _project(matrix: jax.Array, basis: jax.Array) -> jax.Array:
    """[M,N] in a basis: [R,N] in columns [M,R], [M,R] in rows [R,N]."""
    is_left = basis.shape[0] == matrix.shape[0]
    return basis.T @ matrix if is_left else matrix @ basis.T
