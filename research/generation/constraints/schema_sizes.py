"""How long values of a JSON Schema are at least, and how much longer a step may make them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

# Keywords whose values are schemas by name, lists of schemas, and schemas.
_BY_NAME = ("properties", "patternProperties", "$defs", "definitions")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_ONE = ("items", "additionalProperties", "additionalItems")
_CHOICES = ("anyOf", "oneOf")
# Tokens of a text of a format, such as a UUID's digits, and of what a pattern may want of one.
_FORMAT = 40


class SchemaSizes:
    """Tokens of the values of a schema, about: what is wrong in them moves only the moment from
    which a row is led to its end."""

    def __init__(self, schema: Mapping[str, Any], count: Callable[[str], int]):
        """`count`: text -> its tokens."""
        self._root, self._count = schema, count

    def growth(self) -> int:
        """Tokens by which the shortest end moves away with one step, at most: a property that may
        be left out, one more item, a longer one of several values."""
        return max(self._growth(each) for each in _schemas(self._root))

    def _growth(self, schema: Mapping[str, Any]) -> int:
        required = schema.get("required", ())
        sizes = [
            self._property(name, value)
            for name, value in schema.get("properties", {}).items()
            if name not in required
        ]
        more = [schema.get(key) for key in _ONE] + [*schema.get("patternProperties", {}).values()]
        more += schema.get("prefixItems", ())
        sizes += [8 + self._least(value) for value in more if value not in (None, False)]
        for key in _CHOICES:
            branches = [self._least(value) for value in schema.get(key, ())]
            sizes += [max(branches) - min(branches)] if branches else []
        values = [self._json(value) for value in schema.get("enum", ())]
        sizes += [max(values) - min(values)] if values else []
        sizes += [_FORMAT] if {"pattern", "format"} & schema.keys() else []
        return max(sizes, default=0)

    def _json(self, value: Any) -> int:
        return self._count(json.dumps(value, ensure_ascii=False))

    def _property(self, name: str, value: Any, above: tuple[str, ...] = ()) -> int:
        return self._json(name) + 2 + self._least(value, above)

    def _least(self, schema: Any, above: tuple[str, ...] = ()) -> int:
        """Tokens of a small value; `above`: references that it is within."""
        if not isinstance(schema, Mapping):
            return 2
        values = [*schema.get("enum", ()), *([schema["const"]] if "const" in schema else [])]
        if values:
            return min(self._json(value) for value in values)
        total = 2
        reference = schema.get("$ref")
        if isinstance(reference, str) and reference.startswith("#") and reference not in above:
            total += self._least(_find(self._root, reference), (*above, reference))
        for key in _CHOICES:
            total += min((self._least(each, above) for each in schema.get(key, ())), default=0)
        total += sum(self._least(each, above) for each in schema.get("allOf", ()))
        properties, first = schema.get("properties", {}), schema.get("prefixItems", ())
        for name in schema.get("required", ()):
            total += self._property(name, properties.get(name), above)
        for number in range(schema.get("minItems", 0)):
            item = first[number] if number < len(first) else schema.get("items")
            total += self._least(item, above) + 1
        number = schema.get("minimum", schema.get("exclusiveMinimum", 0))
        total += self._json(number) + schema.get("minLength", 0)
        return total + (_FORMAT if {"pattern", "format"} & schema.keys() else 0)


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


def _find(root: Mapping[str, Any], reference: str) -> Any:
    """What a reference within a schema points to; None where it is written in another way."""
    value: Any = root
    for name in filter(None, reference[1:].split("/")):
        name = name.replace("~1", "/").replace("~0", "~")
        value = value.get(name) if isinstance(value, Mapping) else None
    return value
