"""Answers that match a regular expression."""

from __future__ import annotations

import dataclasses
from typing import Literal

from llguidance import LLMatcher

from research.generation.constraints.base import ConstraintConfig, check_grammar


@dataclasses.dataclass(frozen=True)
class RegexConstraint(ConstraintConfig):
    """The whole answer matches a regular expression of Rust's `regex`, without look-around and
    references back; its `\\d` are the digits of all scripts, so write `[0-9]`."""

    pattern: str
    kind: Literal["regex"] = "regex"

    def __post_init__(self) -> None:
        check_grammar(self.llguidance_text, "pattern")

    @property
    def llguidance_text(self) -> str:
        return LLMatcher.grammar_from_regex(self.pattern)
