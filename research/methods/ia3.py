"""IA3: one trained factor for each key, value and inner MLP unit (Liu 2022, arXiv:2205.05638)."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from research.config.schema import Name
from research.methods.attach import attach_at, linears
from research.methods.base import Delta, Method
from research.models.layers import Linear
from research.models.products import scale_features
from research.models.sites import Context, Weight
from research.models.transformer import Transformer


@dataclasses.dataclass(frozen=True)
class IA3(Method):
    """Scales outputs of linears. Scaling `up` is scaling the gated MLP's inner activation."""

    # patterns over names of linears
    targets: tuple[str, ...] = (r"layers/\d+/(attention/(key|value)|mlp/up)",)
    # the adapter's name
    adapter: Name = "ia3"
    kind: Literal["ia3"] = "ia3"

    @property
    def trains(self) -> tuple[tuple[str, bool], ...]:
        return ((rf".*/site/{re.escape(self.adapter)}/factor", True),)

    def weighted_sum(self, others: Sequence[IA3], sides: Mapping[str, int]) -> IA3:
        """The IA3 that a weighted sum of this and others is.

        Raises:
          ValueError: they act on different places.
        """
        if any(other.targets != self.targets for other in others):
            raise ValueError("the adapters act on different places")
        return self

    def attach(self, model: Transformer, key: jax.Array) -> Transformer:
        def make(key, weight, *, axes, setting, number):
            return Scaled(weight, axes)

        targets = [(pattern, True) for pattern in self.targets]
        model = attach_at(model, key, targets, self.adapter, make, (Linear,))
        for name, linear in linears(model):
            if name.endswith("/mlp/up") and self.adapter in linear.site and not model.config.gated:
                raise ValueError(
                    f"{self.adapter} at {name}: this MLP has no gate, so what `up` gives is not "
                    "activated yet and IA3 scales what is; leave it out of `targets`"
                )
        return model


class Scaled(Delta):
    """y * factor, with factor [O] one at the start."""

    def __init__(self, weight: Weight, axes: tuple[str | None, ...]):
        self.factor = nnx.Param(jnp.ones(weight.kernel.shape[1]), axes=axes[1:])

    def __call__(self, x, y, weight: Weight, context: Context) -> jax.Array:
        return scale_features(y, self.factor[...])

    @classmethod
    def weighted_sum(cls, parts: Sequence[tuple[float, Scaled]]) -> dict[str, jax.Array]:
        """The factor of the weighted sum: each adds (factor - 1) times the output."""
        one = jnp.ones(())
        return {"factor": one + sum(weight * (delta.factor[...] - one) for weight, delta in parts)}

    def merge_into(self, weight: Weight, shared: Mapping[str, Any]) -> Weight:
        return _times(weight, self.factor[...])

    def unmerge_from(self, weight: Weight, shared: Mapping[str, Any], residual: Any) -> Weight:
        """The weight before; infinite where a factor is zero."""
        return _times(weight, 1 / self.factor[...])


def _times(weight: Weight, factor: jax.Array) -> Weight:
    """Each output [O] times its factor."""
    bias = None if weight.bias is None else weight.bias * factor
    return Weight(weight.kernel.astype(jnp.float32) * factor, bias)
