"""What constrains an answer, as a config says it: the protocol of its kinds."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llguidance import LLMatcher

from research.generation.constraints.rows import CompiledGrammar
from research.generation.constraints.vocabulary import find_vocabulary
from research.text.tokenizer import Tokenizer


class ConstraintConfig:
    """What an answer must be; each is a frozen dataclass with a `kind: Literal[...]` of its own.

    It is checked where it is made: `__post_init__` calls `check_grammar`.
    """

    # Its name in the registry and in configs.
    kind: str

    @property
    def llguidance_text(self) -> str:
        """The grammar as llguidance reads it.

        Raises:
          ValueError: there is none.
        """
        raise NotImplementedError

    def growth(self, count: Callable[[str], int]) -> int | None:
        """Tokens by which one token may lengthen the shortest end; None: nobody knows.

        Args:
          count: text -> its tokens.
        """
        return None

    @property
    def texts(self) -> Sequence[str]:
        """All texts that it allows; empty where they are not listed."""
        return ()

    def compile(
        self, tokenizer: Tokenizer, stops: Sequence[int] = (), vocabulary_size: int | None = None
    ) -> CompiledGrammar:
        """What it allows in the tokens of a tokenizer; seconds for a large vocabulary's first.

        Args:
          stops: tokens that end an answer beside the tokenizer's end.
          vocabulary_size: V of the model's logits; the tokenizer's unless given.

        Raises:
          ValueError: a tokenizer whose tokens are not bytes of the text, or nothing is allowed.
        """
        vocabulary = find_vocabulary(tokenizer, frozenset({tokenizer.end_id, *stops}))
        size = vocabulary_size or tokenizer.vocabulary_size
        growth = self.growth(lambda text: len(vocabulary.encode(text.encode())))
        return CompiledGrammar(vocabulary, self.llguidance_text, size, growth, self.texts)


def check_grammar(grammar: str, what: str) -> None:
    """Raises ValueError for a grammar that llguidance refuses, or of which it passes over a part.

    Args:
      what: the setting that it is from, for the error.
    """
    is_error, messages = LLMatcher.validate_grammar_with_warnings(grammar)
    if is_error or messages:
        raise ValueError(f"{what}: {messages[0].strip()}")
