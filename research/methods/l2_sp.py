"""L2-SP: tuning that is drawn to where it started (Li 2018, arXiv:1802.01483)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp

from research import tree
from research.config.schema import NonNegative
from research.methods.base import Method
from research.methods.partial import Partial
from research.models.transformer import Transformer
from research.tree import Arrays


@dataclasses.dataclass(frozen=True)
class Anchored(Method):
    """Trains what patterns match; its weighted squared distance from its start joins the loss."""

    # full regular expressions over parameter names of the base
    patterns: tuple[str, ...] = (".*",)
    # half of it times the squared distance is added to the loss
    strength: NonNegative = 1e-2
    has_hooks: ClassVar[bool] = True
    array_fields: ClassVar[tuple[str, ...]] = ("strength",)

    @property
    def trains(self) -> tuple[tuple[str, bool], ...]:
        return Partial(self.patterns).trains

    def attach(self, model: Transformer, key: jax.Array) -> Transformer:
        return Partial(self.patterns).attach(model, key)

    def anchors(self, names: Arrays) -> dict[str, str]:
        """The names of its own parameters, and of their starts in the memory."""
        mine = [name for name in names if tree.match(self.trains, name, False)]
        return {name: f"{name}/{self.kind}/start" for name in mine}

    def memory(self, trainable: Arrays) -> Arrays:
        starts = {start: trainable[name] for name, start in self.anchors(trainable).items()}
        return {f"{self.kind}/strength": jnp.asarray(self.strength, jnp.float32), **starts}

    def penalty(self, trainable: Arrays, memory: Arrays) -> jax.Array:
        distances = [
            jnp.sum(self.importance(name, memory) * jnp.square(trainable[name] - memory[start]))
            for name, start in self.anchors(trainable).items()
        ]
        return 0.5 * memory[f"{self.kind}/strength"] * jnp.sum(jnp.stack(distances))

    def importance(self, name: str, memory: Arrays) -> jax.Array | float:
        """The weight of each number's squared distance."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class L2SP(Anchored):
    """All numbers weigh alike."""

    kind: Literal["l2_sp"] = "l2_sp"

    def importance(self, name: str, memory: Arrays) -> jax.Array | float:
        return 1.0
