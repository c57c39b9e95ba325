"""A head of its own for classes or a number, in place of the vocabulary's."""

from __future__ import annotations

import dataclasses
import re
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from research.config.schema import Name, Positive, PositiveNumber
from research.methods.attach import attach_at
from research.methods.base import Delta, Method
from research.models.layers import Head
from research.models.products import matmul
from research.models.sites import Context
from research.models.transformer import Transformer


@dataclasses.dataclass(frozen=True)
class Classifier(Method):
    """A matrix from the last hidden states to scores; everything of the base stays frozen.

    It has no bias and starts near zero, as the `score` of transformers'
    `ForSequenceClassification`, which an export is. To tune the base too, it stands last in
    `several`: of=[dict(kind="lora"), dict(kind="classifier", outputs=3)], or behind `full`.
    """

    # C: how many classes there are; 1 for a number
    outputs: Positive
    # standard deviation of its start
    deviation: PositiveNumber = 0.02
    # the adapter's name
    adapter: Name = "classifier"
    kind: Literal["classifier"] = "classifier"

    @property
    def head_outputs(self) -> int:
        return self.outputs

    @property
    def trains(self) -> tuple[tuple[str, bool], ...]:
        return ((rf"head/site/{re.escape(self.adapter)}/kernel", True),)

    def attach(self, model: Transformer, key: jax.Array) -> Transformer:
        if model.head.site:
            raise ValueError(
                f"{self.adapter}: {', '.join(model.head.site)} acts on the logits of tokens, which "
                "are not made: leave `head` out of its targets"
            )

        def make(key, weight, *, axes, setting, number):
            return Scores(key, (model.config.width, self.outputs), self.deviation, axes)

        return attach_at(model, key, (("head", True),), self.adapter, make, (Head,))


class Scores(Delta):
    """x @ kernel [D,C] in place of logits."""

    def __init__(
        self,
        key: jax.Array,
        shape: tuple[int, int],
        deviation: float,
        axes: tuple[str | None, ...],
    ):
        kernel = deviation * jax.random.normal(key, shape)
        self.kernel = nnx.Param(kernel, axes=(axes[0], None))

    @property
    def replaces(self) -> bool:
        return True

    def __call__(self, x: jax.Array, y: object, weight: object, context: Context) -> jax.Array:
        """x [B,S,D] -> [B,S,C] in float32."""
        return matmul(x, self.kernel[...], jnp.float32)
