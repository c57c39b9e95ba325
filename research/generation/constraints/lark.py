"""Answers of a Lark grammar."""

from __future__ import annotations

import dataclasses
from typing import Literal

from llguidance import LLMatcher

from research.generation.constraints.base import ConstraintConfig, check_grammar


@dataclasses.dataclass(frozen=True)
class LarkConstraint(ConstraintConfig):
    """The whole answer is what the rule `start` of a grammar in llguidance's kind of Lark says.

    Special tokens (`<|name|>`) have no text and so do not come in an answer.
    """

    grammar: str
    kind: Literal["lark"] = "lark"

    def __post_init__(self) -> None:
        check_grammar(self.llguidance_text, "grammar")

    @property
    def llguidance_text(self) -> str:
        return LLMatcher.grammar_from_lark(self.grammar)
