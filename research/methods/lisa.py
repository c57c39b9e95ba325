"""LISA: layers that train are chosen anew every few steps (Pan 2024, arXiv:2403.17919)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

import jax

from research import tree
from research.config.schema import Positive
from research.methods.base import Method
from research.methods.partial import Partial
from research.models.transformer import Transformer
from research.tree import Arrays

# of `fold_in`, apart from those of steps, by which dropout's keys are told apart
LAYERS = 2**32 - 1


@dataclasses.dataclass(frozen=True)
class LISA(Method):
    """Trains `active_layers` layers, chosen at random every `every` steps, and always what lies
    outside of layers: embedding, head, last norm.

    A layer that is not chosen stays as it is: no update, no decay, and its moments wait. The choice
    is a pure function of the run's seed and the step. It is a choice of updates alone: one program
    computes the gradients of all layers and holds the moments of all, so that a step takes the
    time and the memory of full tuning. (In the paper, what does not train has neither.)
    """

    # how many layers train at a time
    active_layers: Positive = 2
    # steps between two choices
    every: Positive = 20
    kind: Literal["lisa"] = "lisa"
    has_hooks: ClassVar[bool] = True

    @property
    def trains(self) -> tuple[tuple[str, bool], ...]:
        return Partial((".*",)).trains

    def attach(self, model: Transformer, key: jax.Array) -> Transformer:
        if self.active_layers >= model.config.layers:
            raise ValueError(
                f"method: active_layers {self.active_layers} is not less than the model's "
                f"{model.config.layers} layers: none would stay as it is; take `full`"
            )
        return model

    def check_steps(self, steps: int) -> None:
        if self.every >= steps:
            raise ValueError(
                f"method: every {self.every} is not less than the run's {steps} steps: the same "
                f"{self.active_layers} layers would train in all of them"
            )

    def active(self, trainable: Arrays, key: jax.Array, step: jax.Array) -> Arrays:
        layers = {
            name: tree.layers_of(name)
            for name in trainable
            if tree.is_stacked(name) and not tree.is_attached(name)
        }
        count = 1 + max(stack[-1] for stack in layers.values())
        key = jax.random.fold_in(jax.random.fold_in(key, LAYERS), step // self.every)
        mask = jax.random.permutation(key, count) < self.active_layers
        return {name: mask[stack.start : stack.stop] for name, stack in layers.items()}
