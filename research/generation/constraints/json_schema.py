"""Answers that are JSON of a schema."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from llguidance import LLMatcher

from research.config.schema import build
from research.generation.constraints.base import ConstraintConfig, check_grammar
from research.generation.constraints.schema_keywords import check_keywords
from research.generation.constraints.schema_sizes import SchemaSizes
from research.runtime import unique_json

# Between the parts of a JSON text: a line's end and spaces, so many that objects can be indented.
_WHITE_SPACE = r"\n {0,16}| {1,16}"


@dataclasses.dataclass(frozen=True)
class SchemaConstraint(ConstraintConfig):
    """The answer is JSON of a JSON Schema, its keys in the schema's order.

    Keywords that llguidance does not know (`not`, `uniqueItems`, `if`) are refused by name.
    """

    # the JSON Schema; an empty one allows any JSON
    schema: Mapping[str, Any]
    # without white space; otherwise at most a line's end and 16 spaces between two parts
    compact: bool = False
    kind: Literal["json_schema"] = "json_schema"

    def __post_init__(self) -> None:
        import jsonschema

        kind = jsonschema.validators.validator_for(self.schema, jsonschema.Draft202012Validator)
        try:
            kind.check_schema(self.schema)
        except jsonschema.SchemaError as error:
            place = ".".join(map(str, error.absolute_path)) or "the whole"
            raise ValueError(f"schema: no JSON Schema: {place}: {error.message}") from None
        check_keywords(self.schema)
        check_grammar(self.llguidance_text, "schema")

    @property
    def llguidance_text(self) -> str:
        # all of them, so that a schema (`x-guidance`) cannot say otherwise
        options: dict[str, Any] = {"lenient": False, "coerce_one_of": False}
        options |= {"whitespace_flexible": not self.compact}
        options |= {"whitespace_pattern": None if self.compact else _WHITE_SPACE}
        overrides: Any = options  # their type cannot be imported
        return LLMatcher.grammar_from_json_schema(json.dumps(self.schema), overrides=overrides)

    def growth(self, count: Callable[[str], int]) -> int:
        return SchemaSizes(self.schema, count).growth()


def read_schema(path: str) -> SchemaConstraint:
    """The constraint of a file that holds a JSON Schema.

    Raises:
      FileNotFoundError, ValueError: it does not; says where.
    """
    try:
        content = {"schema": unique_json.parse(Path(path).read_bytes(), strict=True)}
    except ValueError as error:
        raise ValueError(f"{path}: no JSON: {error}") from None
    return build(SchemaConstraint, content, path)
