"""Answers that are one of a list."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Literal

from llguidance import LLMatcher

from research.generation.constraints.base import ConstraintConfig, check_grammar


@dataclasses.dataclass(frozen=True)
class ChoiceConstraint(ConstraintConfig):
    """The answer is one of these texts."""

    choices: tuple[str, ...]
    kind: Literal["choice"] = "choice"

    def __post_init__(self) -> None:
        if not self.choices or "" in self.choices:
            raise ValueError(f"choices: texts to choose from, none of them empty: {self.choices}")
        if len(set(self.choices)) < len(self.choices):
            raise ValueError(f"choices: one of them is there twice: {', '.join(self.choices)}")
        check_grammar(self.llguidance_text, "choices")

    @property
    def llguidance_text(self) -> str:
        options = " | ".join(json.dumps(text, ensure_ascii=False) for text in self.choices)
        return LLMatcher.grammar_from_lark(f"start: {options}")

    @property
    def texts(self) -> Sequence[str]:
        return self.choices
