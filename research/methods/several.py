"""Several methods at once, such as LoRA and a prompt, one after the other on the same base."""

from __future__ import annotations

import dataclasses
import itertools
from typing import TYPE_CHECKING, Any, Literal

import jax

from research.config.schema import one_of
from research.models.transformer import Transformer

if TYPE_CHECKING:
    from research.text.tokenizer import Tokenizer


def make(members: tuple[type, ...]) -> type[Any]:
    """The method whose parts are of these classes."""
    part: Any = one_of(members)
    fields: Any = [
        # the methods, in the order in which they act where they meet
        ("of", tuple[part, ...]),
        ("kind", Literal["several"], "several"),
    ]
    return dataclasses.make_dataclass("Several", fields, bases=(_Several,), frozen=True)


class _Several:
    of: tuple[Any, ...]

    def __post_init__(self) -> None:
        names = [getattr(method, "adapter", method.kind) for method in self.of]
        if len(self.of) < 2 or len(set(names)) < len(names):
            raise ValueError(f"method: `of` holds two methods or more by different names: {names}")
        if any(method.kind == "full" for method in self.of):
            raise ValueError("method: full trains everything, and so goes with no other method")

        for before, method in itertools.pairwise(self.of):
            if method.kind == "dora":
                raise ValueError(
                    f"method: dora turns the base's own weight, so it acts before {before.kind}: "
                    "put it first in `of`, and only once"
                )

    @property
    def trains(self) -> tuple[tuple[str, bool], ...]:
        return tuple(rule for method in self.of for rule in method.trains)

    @property
    def drops(self) -> bool:
        return any(getattr(method, "drops", False) for method in self.of)

    def bind(self, words: Tokenizer) -> Any:
        bound = tuple(m.bind(words) if hasattr(m, "bind") else m for m in self.of)
        return dataclasses.replace(self, of=bound)  # type: ignore[type-var]

    def attach(self, model: Transformer, key: jax.Array) -> Transformer:
        for number, method in enumerate(self.of):
            model = method.attach(model, jax.random.fold_in(key, number))
        return model
