"""Keywords of JSON Schemas: what is none would be passed over by every reader, as the standard has
it, and a misspelt one with what it was to say."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any

from research.config.suggestions import suggestion

# Keywords that say nothing of values, or belong to others.
_BESIDE = frozenset(
    "$schema $id id $anchor $dynamicAnchor $recursiveAnchor $vocabulary $comment $defs definitions "
    "title description default examples example deprecated readOnly writeOnly then else "
    "minContains maxContains contentEncoding contentMediaType contentSchema".split()
)
# Keywords whose values are schemas by name, lists of schemas, and schemas.
_BY_NAME = ("properties", "patternProperties", "dependentSchemas", "$defs", "definitions")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems", "items")
_ONE = ("items", "additionalItems", "unevaluatedItems", "contains", "additionalProperties") + (
    *("unevaluatedProperties", "propertyNames", "contentSchema", "not", "if", "then", "else"),
)


def check_keywords(schema: Any) -> None:
    """Raises ValueError for a keyword that JSON Schema has not, with the nearest that it has; what
    begins with `x-` is anybody's own."""
    for part in _schemas(schema):
        for name in part:
            if name not in _keywords() and not name.startswith("x-"):
                raise ValueError(
                    f"schema: {name!r} is no keyword of JSON Schema and would say nothing"
                    f"{suggestion(name, _keywords())}"
                )


@functools.cache
def _keywords() -> frozenset[str]:
    """Those of all drafts."""
    import jsonschema

    drafts = [jsonschema.Draft4Validator, jsonschema.Draft7Validator]
    drafts += [jsonschema.Draft201909Validator, jsonschema.Draft202012Validator]
    return _BESIDE.union(*(draft.VALIDATORS for draft in drafts))


def _schemas(schema: Any) -> Iterator[Mapping[str, Any]]:
    """A schema and those within it."""
    if not isinstance(schema, Mapping):
        return
    yield schema
    for key in _BY_NAME:
        if isinstance(schema.get(key), Mapping):
            for part in schema[key].values():
                yield from _schemas(part)
    for key in _LISTS:
        if isinstance(schema.get(key), list | tuple):
            for part in schema[key]:
                yield from _schemas(part)
    for key in _ONE:
        yield from _schemas(schema.get(key))
