"""What an answer must be, whatever the model: one file a kind, chosen in a config by `kind`."""

from typing import Any

from research.config.schema import by_kind, one_of
from research.generation.constraints.base import ConstraintConfig
from research.generation.constraints.choice import ChoiceConstraint
from research.generation.constraints.json_schema import SchemaConstraint
from research.generation.constraints.lark import LarkConstraint
from research.generation.constraints.regex import RegexConstraint
from research.generation.constraints.rows import CompiledGrammar, Constraint

__all__ = ["CONSTRAINTS", "AnyConstraint", "CompiledGrammar", "Constraint", "ConstraintConfig"]

CONSTRAINTS: dict[str, type[ConstraintConfig]] = by_kind(
    SchemaConstraint, RegexConstraint, ChoiceConstraint, LarkConstraint
)
# One of them, told apart by its `kind`.
AnyConstraint: Any = one_of(CONSTRAINTS.values())
