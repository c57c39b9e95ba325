"""Whether an answer is JSON, fits a schema, and says the right things."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Mapping
from typing import Any, Literal

from research.evaluation.scorers.base import Scorer, Scores
from research.generation.constraints.schema_keywords import check_keywords
from research.runtime import unique_json

_FENCE = re.compile(r"\s*```(?:json)?\s*\n(.*?)\n\s*```\s*", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class JsonSchema(Scorer):
    """Whether an answer is JSON (`json`), and of the schema (`json/valid`); against a reference,
    also whether it is equal (`json/exact`) and the share of fields that are right (`json/fields`).

    A field is a leaf of the objects of either, by its path; one that only one of them has is wrong.
    Lists are leaves, whose order counts where `ordered` says so. `json/field/PATH` is each field
    of the reference over the records that have it.
    """

    # the JSON Schema; None: any JSON
    schema: Mapping[str, Any] | None = None
    # the field with the right JSON, as a text or as it is; None: it is not compared
    reference: str | None = "completion"
    # whether an answer may stand between ```json and ```
    fenced: bool = False
    # whether lists in another order differ
    ordered: bool = False
    name: str = ""
    kind: Literal["json"] = "json"

    def __post_init__(self) -> None:
        _validator(json.dumps(self.schema))
        check_keywords(self.schema)

    def score(self, answer: str, record: Mapping[str, Any]) -> Scores:
        right = None if self.reference is None else _read_reference(record, self.reference)
        names = ["", *(["valid"] if self.schema is not None else [])]
        names += [] if self.reference is None else ["exact", "fields"]
        values = {f"{self.label}/{name}".removesuffix("/"): 0.0 for name in names}
        fields = {} if self.reference is None else _leaves(right)
        values |= {f"{self.label}/field/{path}": 0.0 for path in fields if path}
        try:
            content = self._parse(answer)
        except ValueError as error:
            return Scores(values, f"no JSON: {error}")
        values[self.label] = 1.0
        remark = ""
        if self.schema is not None:
            remark = _find_error(_validator(json.dumps(self.schema)), content)
            values[f"{self.label}/valid"] = float(not remark)
        if self.reference is not None:
            leaves = _leaves(content)
            paths = leaves.keys() | fields.keys()
            common = leaves.keys() & fields.keys()
            equal = {path for path in common if self._same(leaves[path], fields[path])}
            values[f"{self.label}/exact"] = float(len(equal) == len(paths))
            values[f"{self.label}/fields"] = len(equal) / len(paths)
            values |= {f"{self.label}/field/{path}": 1.0 for path in equal if path}
        return Scores(values, remark=remark)

    def reading(self, answer: str) -> str | None:
        try:
            return _key(self._parse(answer), self.ordered)
        except ValueError:
            return None

    def _parse(self, answer: str) -> Any:
        """The JSON of an answer; ValueError where it is none."""
        if self.fenced and (match := _FENCE.fullmatch(answer)):
            answer = match[1]
        return unique_json.parse(answer.strip(), strict=True)

    def _same(self, first: Any, second: Any) -> bool:
        return _key(first, self.ordered) == _key(second, self.ordered)


def _find_error(validator: Any, content: Any) -> str:
    """What is wrong with a value, and where; empty: it is of the schema."""
    from jsonschema.exceptions import best_match

    error = best_match(validator.iter_errors(content))
    if error is None:
        return ""
    place = ".".join(map(str, error.absolute_path))
    return f"{place}: {error.message}" if place else error.message


def _read_reference(record: Mapping[str, Any], field: str) -> Any:
    value = record.get(field)
    if isinstance(value, str):
        try:
            value = unique_json.parse(value)
        except ValueError as error:
            raise ValueError(f"its {field!r} is no JSON: {error}") from None
    if value is None:
        raise ValueError(f"it has no {field!r}; fields: {', '.join(sorted(record))}")
    return value


def _leaves(value: Any, path: str = "") -> dict[str, Any]:
    """Path -> value of what is no object with something in it; the path of a whole is empty."""
    if not isinstance(value, Mapping) or not value:
        return {path: value}
    leaves: dict[str, Any] = {}
    for name, item in value.items():
        leaves |= _leaves(item, f"{path}.{name}" if path else name)
    return leaves


def _key(value: Any, is_ordered: bool) -> str:
    """A text that is equal for equal values; 1 and 1.0 are, 1 and true are not."""
    if isinstance(value, list):
        keys = [_key(item, is_ordered) for item in value]
        return f"[{','.join(keys if is_ordered else sorted(keys))}]"
    if isinstance(value, Mapping):
        items = sorted((json.dumps(name), _key(item, is_ordered)) for name, item in value.items())
        return f"{{{','.join(f'{name}:{item}' for name, item in items)}}}"
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return json.dumps(value)


@functools.lru_cache(maxsize=64)
def _validator(schema: str) -> Any:
    """A validator of a schema as JSON.

    Raises:
        ValueError: it is no JSON Schema.
    """
    import jsonschema

    content = json.loads(schema)
    content = True if content is None else content
    kind = jsonschema.validators.validator_for(content, jsonschema.Draft202012Validator)
    try:
        kind.check_schema(content)
    except jsonschema.SchemaError as error:
        place = ".".join(map(str, error.absolute_path)) or "the whole"
        raise ValueError(f"schema: no JSON Schema: {place}: {error.message}") from None
    return kind(content)
