"""Answers that are JSON of a schema."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from llguidance import LLMatcher

from research.generation.constraints.base import ConstraintConfig, check_grammar

# Between the parts of a JSON text: a line's end and spaces, so many that objects can be indented.
_WHITE_SPACE = r"\n {0,16}| {1,16}"
# Keywords whose values are schemas by name, lists of schemas, and schemas.
_BY_NAME = ("properties", "patternProperties", "$defs", "definitions")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_ONE = ("items", "additionalProperties", "additionalItems")


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
        check_grammar(self.llguidance_text, "schema")

    @property
    def llguidance_text(self) -> str:
        # all of them, so that a schema (`x-guidance`) cannot say otherwise
        options: dict[str, Any] = {"lenient": False, "coerce_one_of": False}
        options |= {"whitespace_flexible": not self.compact}
        options |= {"whitespace_pattern": None if self.compact else _WHITE_SPACE}
        overrides: Any = options  # their type cannot be imported
        return LLMatcher.grammar_from_json_schema(json.dumps(self.schema), overrides=overrides)

    @property
    def growth(self) -> int:
        return max(_growth(each, self.schema) for each in _schemas(self.schema))


def _schemas(schema: Any) -> Iterator[Mapping[str, Any]]:
    """A schema and all that it is made of."""
    if not isinstance(schema, Mapping):
        return
    yield schema
    parts = [part for key in _BY_NAME for part in schema.get(key, {}).values()]
    parts += [part for key in _LISTS for part in schema.get(key, ())]
    for key in _ONE:
        parts += schema[key] if isinstance(schema.get(key), list) else [schema.get(key)]
    for part in parts:
        yield from _schemas(part)


def _growth(schema: Mapping[str, Any], root: Mapping[str, Any]) -> int:
    """Bytes by which the shortest end moves away with one step into a schema, about: a property
    that may be left out, one more item, a longer one of several values."""
    properties, required = schema.get("properties", {}), schema.get("required", ())
    sizes = [
        len(json.dumps(name)) + 4 + _least(value, root)
        for name, value in properties.items()
        if name not in required
    ]
    more = [schema.get(key) for key in _ONE] + [*schema.get("patternProperties", {}).values()]
    more += schema.get("prefixItems", ())
    sizes += [8 + _least(value, root) for value in more if value not in (None, False)]
    for key in ("anyOf", "oneOf"):
        branches = [_least(value, root) for value in schema.get(key, ())]
        sizes += [max(branches) - min(branches)] if branches else []
    values = [len(json.dumps(value)) for value in schema.get("enum", ())]
    sizes += [max(values) - min(values)] if values else []
    sizes += [32] if {"pattern", "format"} & schema.keys() else []
    return max(sizes, default=0)


def _least(schema: Any, root: Mapping[str, Any], above: tuple[str, ...] = ()) -> int:
    """Bytes of a small value of a schema, about: what is wrong in it moves only the moment from
    which a row is led to its end."""
    if not isinstance(schema, Mapping):
        return 2
    values = [*schema.get("enum", ()), *([schema["const"]] if "const" in schema else [])]
    if values:
        return min(len(json.dumps(value)) for value in values)
    total = 4
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference.startswith("#") and reference not in above:
        total += _least(_find(root, reference), root, (*above, reference))
    for key in ("anyOf", "oneOf"):
        total += min((_least(each, root, above) for each in schema.get(key, ())), default=0)
    total += sum(_least(each, root, above) for each in schema.get("allOf", ()))
    properties, first = schema.get("properties", {}), schema.get("prefixItems", ())
    for name in schema.get("required", ()):
        total += len(json.dumps(name)) + 4 + _least(properties.get(name), root, above)
    for number in range(schema.get("minItems", 0)):
        item = first[number] if number < len(first) else schema.get("items")
        total += _least(item, root, above) + 2
    return total + schema.get("minLength", 0) + (32 if "format" in schema else 0)


def _find(root: Mapping[str, Any], reference: str) -> Any:
    """What a reference within a schema points to; None where it is written in another way."""
    value: Any = root
    for name in filter(None, reference[1:].split("/")):
        name = name.replace("~1", "/").replace("~0", "~")
        value = value.get(name) if isinstance(value, Mapping) else None
    return value
