"""Several methods at once, such as LoRA and a prompt, one after the other on the same base."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import jax
import jax.numpy as jnp

from research.batch import Batch
from research.methods.base import Gradients, Method
from research.methods.members import Member
from research.models.transformer import Transformer
from research.tree import Arrays

if TYPE_CHECKING:
    from research.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Several(Method):
    """Methods with different adapter names, all of which train."""

    # the methods, in the order in which they act where they meet
    of: tuple[Member, ...]
    kind: Literal["several"] = "several"

    def __post_init__(self) -> None:
        names = [method.adapter or method.kind for method in self.of]
        if len(self.of) < 2 or len(set(names)) < len(names):
            raise ValueError(f"method: `of` holds two methods or more by different names: {names}")
        for method in self.of:
            if method.stands_alone and not all(m.head_outputs for m in self.of if m != method):
                raise ValueError(
                    f"method: {method.kind} trains everything, and so goes with no other method"
                )
        for before, method in itertools.pairwise(self.of):
            if before.head_outputs:
                raise ValueError(
                    f"method: {before.kind} reads what the others leave: put it last in `of`, and "
                    "only once"
                )
            if method.acts_first:
                raise ValueError(
                    f"method: {method.kind} turns the base's own weight, so it acts before "
                    f"{before.kind}: put it first in `of`, and only once"
                )

    @property
    def trains(self) -> tuple[tuple[str, bool], ...]:
        return tuple(rule for method in self.of for rule in method.trains)

    @property
    def adapter_names(self) -> tuple[str, ...]:
        return tuple(name for method in self.of for name in method.adapter_names)

    @property
    def head_outputs(self) -> int:
        return self.of[-1].head_outputs

    @property
    def drops(self) -> bool:
        return any(method.drops for method in self.of)

    def bind(self, tokenizer: Tokenizer) -> Several:
        return dataclasses.replace(self, of=tuple(m.bind(tokenizer) for m in self.of))

    @property
    def has_hooks(self) -> bool:
        return any(method.has_hooks for method in self.of)

    @property
    def batches_to_start(self) -> int:
        return max(method.batches_to_start for method in self.of)

    @property
    def needs_start_data(self) -> bool:
        return any(method.needs_start_data for method in self.of)

    def start_from_data(
        self, model: Transformer, memory: Arrays, batches: Sequence[Batch], gradients: Gradients
    ) -> tuple[Transformer, Arrays]:
        for method in self.of:
            mine = batches[: method.batches_to_start]
            model, memory = method.start_from_data(model, memory, mine, gradients)
        return model, memory

    def memory(self, trainable: Arrays) -> Arrays:
        parts = [method.memory(trainable) for method in self.of]
        return {name: leaf for part in parts for name, leaf in part.items()}

    def penalty(self, trainable: Arrays, memory: Arrays) -> jax.Array:
        penalties = [m.penalty(trainable, memory) for m in self.of if m.has_hooks]
        return jnp.sum(jnp.stack(penalties))

    def active(self, trainable: Arrays, key: jax.Array, step: jax.Array) -> Arrays:
        parts = [method.active(trainable, key, step) for method in self.of]
        return {name: mask for part in parts for name, mask in part.items()}

    def adjust(
        self, trainable: Arrays, gradients: Arrays, memory: Arrays, step: jax.Array
    ) -> tuple[Arrays, Arrays]:
        for method in self.of:
            trainable, memory = method.adjust(trainable, gradients, memory, step)
        return trainable, memory

    def check_steps(self, steps: int) -> None:
        for method in self.of:
            method.check_steps(steps)

    def attach(self, model: Transformer, key: jax.Array) -> Transformer:
        for number, method in enumerate(self.of):
            model = method.attach(model, jax.random.fold_in(key, number))
        return model
