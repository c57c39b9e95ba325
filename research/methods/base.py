"""The base classes of tuning methods and of what they put into sites."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

import jax
import jax.numpy as jnp

from research.batch import Batch
from research.models.sites import Delta, Weight
from research.models.transformer import Transformer
from research.tree import Arrays

if TYPE_CHECKING:
    from research.text.tokenizer import Tokenizer

__all__ = ["Delta", "Gradients", "KernelChange", "Method"]


class Gradients(Protocol):
    """What a start from data asks the model.

    Args:
      names: of the leaves that gradients are asked of.
      by_row: give sums over rows of the squares of each row's gradients.

    Returns:
      By name, gradients of the sum of the batch's weighted losses; the context of the pass has
      `counted`.
    """

    def __call__(
        self, model: Transformer, names: tuple[str, ...], batch: Batch, by_row: bool = False
    ) -> Arrays: ...


class Method:
    """A tuning method; each is a frozen dataclass with a `kind: Literal[...]` of its own.

    A method says which parameters train (`trains`) and attaches its own to a model (`attach`). The
    other members have defaults: they are those of a method that attaches nothing.
    """

    # its name in the registry and in configs
    kind: str
    # fields that may be arrays in `attach` and `memory`: runs that differ in them share a program
    array_fields: ClassVar[tuple[str, ...]] = ()

    @property
    def adapter(self) -> str:
        """The name under which it stands in sites; empty for a method that attaches nothing."""
        return ""

    @property
    def adapter_names(self) -> tuple[str, ...]:
        """The names under which its parts stand in sites, in the order in which they act."""
        return (self.adapter,) if self.adapter else ()

    @property
    def bank_names(self) -> tuple[str, ...]:
        """The names of the adapters that rows choose among; only a bank has any."""
        return ()

    @property
    def head_outputs(self) -> int:
        """C, where the model says classes or a number by a head of this method, and no tokens; 0:
        it has the vocabulary's."""
        return 0

    @property
    def drops(self) -> bool:
        """Whether its deltas apply `Context.adapter_dropout`."""
        return False

    @property
    def has_hooks(self) -> bool:
        """Whether the train step asks it: `memory`, `penalty`, `active` and `adjust`. Else they are
        not called, and the step is that of every other method."""
        return False

    @property
    def batches_to_start(self) -> int:
        """How many batches `start_from_data` gets; 0: it starts without data."""
        return 0

    @property
    def needs_start_data(self) -> bool:
        """Whether these are of data that the run does not train on."""
        return False

    @property
    def stands_alone(self) -> bool:
        """Whether it goes with no other method on one base, but for a head."""
        return False

    @property
    def acts_first(self) -> bool:
        """Whether it acts on the base's own weight, so that no other may act there before."""
        return False

    @property
    def trains(self) -> tuple[tuple[str, bool], ...]:
        """Ordered (pattern over parameter names, trains) rules; what none matches is frozen."""
        raise NotImplementedError

    def bind(self, tokenizer: Tokenizer) -> Self:
        """The method with what it takes of the tokenizer, such as the tokens of a prompt's text."""
        return self

    def check_steps(self, steps: int) -> None:
        """Refuses a run of too few steps.

        Raises:
          ValueError: what it does would not be done by the run's end.
        """

    def attach(self, model: Transformer, key: jax.Array) -> Transformer:
        """A copy of the model with this method's parameters in its sites.

        Raises:
          ValueError: the method does not fit the model.
        """
        return model

    def start_from_data(
        self, model: Transformer, memory: Arrays, batches: Sequence[Batch], gradients: Gradients
    ) -> tuple[Transformer, Arrays]:
        """Model and memory before the first step, once what was attached has seen data.

        Args:
          model: with the method attached; its shapes stay.
          batches: the first of `start_data`, or of the run itself.
        """
        return model, memory

    def memory(self, trainable: Arrays) -> Arrays:
        """What it has beside weights before the first step, by name; it is saved and resumed.

        `penalty` and `adjust` do not have the numbers in `array_fields`: they stand here. An array
        of a parameter, with its stack axes, has the parameter's name in front of its own, and lies
        as the parameter does.

        Args:
          trainable: the leaves that train, by name; those of other methods beside it too.
        """
        return {}

    def penalty(self, trainable: Arrays, memory: Arrays) -> jax.Array:
        """[] what is added to the mean loss of a step."""
        return jnp.zeros(())

    def active(self, trainable: Arrays, key: jax.Array, step: jax.Array) -> Arrays:
        """Which layers train in a step: bool by leaf, [] or for a stacked leaf [L].

        Weights, moments and gradients (before their norm is taken) of others are left out of the
        step, decay included. A leaf that is not named trains.

        Args:
          key: of the run's seed, the same in every step.
          step: [] int32, number of steps taken before this one.
        """
        return {}

    def adjust(
        self, trainable: Arrays, gradients: Arrays, memory: Arrays, step: jax.Array
    ) -> tuple[Arrays, Arrays]:
        """Weights and memory after a step; a step that is not finite changes neither.

        Args:
          trainable: the leaves as the optimizer leaves them.
          gradients: of the step, clipped.
          step: [] int32, number of steps taken before this one.
        """
        return trainable, memory

    def weighted_sum(self, others: Sequence[Any], sides: Mapping[str, int]) -> Method:
        """The method that a weighted sum of this one's adapter and those of others is.

        Args:
          others: methods of the same kind.
          sides: the smaller side of each weight, by place.

        Raises:
          ValueError: such a sum is of no method, or they act on different places.
        """
        raise ValueError(f"a sum of {self.kind} adapters is not linear: it is no adapter")


class KernelChange(Delta):
    """A delta that adds a matrix to its kernel."""

    def change(self, weight: Weight, shared: Mapping[str, Any]) -> jax.Array:
        """The matrix [I,O] that it adds."""
        raise NotImplementedError

    def merge_into(self, weight: Weight, shared: Mapping[str, Any]) -> Weight:
        kernel = weight.kernel.astype(jnp.float32) + self.change(weight, shared)
        return weight._replace(kernel=kernel)

    def unmerge_from(self, weight: Weight, shared: Mapping[str, Any], residual: Any) -> Weight:
        return weight._replace(kernel=weight.kernel - self.change(weight, shared))
