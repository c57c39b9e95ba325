"""The base class of tuning methods."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import jax

from research.models.transformer import Transformer

if TYPE_CHECKING:
    from research.text.tokenizer import Tokenizer


class Method:
    """A tuning method; each is a frozen dataclass with a `kind: Literal[...]` of its own.

    A method says which parameters train (`trains`) and attaches its own to a model (`attach`). The
    other members have defaults: they are those of a method that attaches nothing.
    """

    # its name in the registry and in configs
    kind: str

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
    def drops(self) -> bool:
        """Whether its deltas apply `Context.adapter_dropout`."""
        return False

    @property
    def trains(self) -> tuple[tuple[str, bool], ...]:
        """Ordered (pattern over parameter names, trains) rules; what none matches is frozen."""
        raise NotImplementedError

    def bind(self, tokenizer: Tokenizer) -> Self:
        """The method with what it takes of the tokenizer, such as the tokens of a prompt's text."""
        return self

    def attach(self, model: Transformer, key: jax.Array) -> Transformer:
        """A copy of the model with this method's parameters in its sites.

        Raises:
          ValueError: the method does not fit the model.
        """
        return model
