"""Configs inside the program: checked frozen dataclasses, built from loose mappings.

`build` converts a mapping (as a config file or a run's folder holds it) to a dataclass and checks
every key and type before anything is computed. It is strict: an int may stand for a float, a list
for a tuple, nothing else is changed. A dataclass can add bounds to a field,
`width: Annotated[int, pydantic.Field(gt=0)]`, or raise ValueError in `__post_init__`: both are
reported with the dotted path. A field that may hold one of several dataclasses tells them apart by
a `kind: Literal["..."]` field. `research.config.cli` reads the files and the command line.

This module imports no JAX, so that a program answers `--help` and a misspelt flag at once.
"""

import dataclasses
import functools
import json
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union

import ml_collections
import pydantic

from research.config.renamed import upgrade
from research.config.suggestions import suggestion

T = TypeVar("T")
Function = TypeVar("Function", bound=Callable[..., Any])
Location = tuple[str | int, ...]

# bounds that many fields share
Positive = Annotated[int, pydantic.Field(gt=0)]
Count = Annotated[int, pydantic.Field(ge=0)]
PositiveNumber = Annotated[float, pydantic.Field(gt=0)]
NonNegative = Annotated[float, pydantic.Field(ge=0)]
Share = Annotated[float, pydantic.Field(ge=0, le=1)]
BelowOne = Annotated[float, pydantic.Field(ge=0, lt=1)]
Name = Annotated[str, pydantic.Field(pattern=r"^\w+$")]
UNKNOWN_KEY = ("unexpected_keyword_argument", "extra_forbidden")  # pydantic's names for it


def build(cls: type[T], mapping: Any, where: str = "config", name: str = "") -> T:
    """Converts a mapping (dict, ConfigDict or dataclass) to the dataclass `cls`, strictly.

    Keys that `research.config.renamed` knows under the name of the class (or `name`, for a union of
    classes) are read under their old names too.

    Raises ValueError that names every wrong key by its dotted path, starting with `where`: unknown
    keys with the nearest valid one, values of a wrong type, and required keys that are missing.
    """
    plain = upgrade(_plain(mapping, where), name or getattr(cls, "__name__", ""))
    text = json.dumps([plain])
    try:
        # JSON, because pydantic's strict mode then still takes a list for a tuple, and a mapping
        # for a dataclass.
        return _adapter(cls).validate_json(text)[0]
    except pydantic.ValidationError as error:
        problems = error.errors(include_url=False)
        # A misspelt key is why another is missing, so it comes first.
        problems.sort(key=lambda problem: problem["type"] not in UNKNOWN_KEY)
        messages = [_explain(cls, problem, where) for problem in problems]
    raise ValueError("\n".join(messages))


def to_dict(obj: Any) -> dict[str, Any]:
    """The inverse of `build`: nested dicts and lists that JSON can hold."""
    return _plain(obj, "config")


def dump_json(obj: Any, path: str | Path) -> None:
    """Writes a config dataclass as indented JSON."""
    Path(path).write_text(json.dumps(to_dict(obj), indent=2) + "\n", encoding="utf-8")


def load_json(cls: type[T], path: str | Path) -> T:
    """Reads a config that `dump_json` wrote. Raises ValueError if it is torn or does not fit."""
    from research.runtime import storage  # here: help needs none of it

    try:
        mapping = json.loads(storage.absolute(path).read_bytes())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {error.lineno}: not JSON: {error.msg}") from None
    return build(cls, mapping, where=f"{path}: config")


def one_of(classes: Iterable[type]) -> Any:
    """The type of a field that holds one of several dataclasses, told apart by their `kind`."""
    return Annotated[Union[tuple(classes)], pydantic.Field(discriminator="kind")]  # noqa: UP007


def by_kind(*classes: Any) -> dict[str, Any]:
    """A registry of dataclasses: the name of each is the default of its `kind`."""
    return {cls.kind: cls for cls in classes}


def _cached(function: Function) -> Function:
    return functools.cache(function)  # type: ignore[return-value]  # for mypy no type is hashable


@_cached  # 30 ms for a whole experiment, which studies build hundreds of times
def _adapter(cls: Any) -> pydantic.TypeAdapter:
    # Standard dataclasses take over the config of the type around them, so `cls` needs one.
    strict = pydantic.ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    return pydantic.TypeAdapter(tuple[cls], config=strict)


def _plain(value: Any, path: str) -> Any:
    """Turns ConfigDicts, dataclasses and tuples into the dicts and lists that JSON knows."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {name: getattr(value, name) for name in fields_of(type(value))}
    if isinstance(value, Mapping | ml_collections.ConfigDict):
        for key in value:
            if not isinstance(key, str):
                raise ValueError(f"{path}: the key {key!r} is no string")
        return {key: _plain(value[key], f"{path}.{key}") for key in value}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{path}[{i}]") for i, item in enumerate(value)]
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise ValueError(
        f"{path}: a config holds numbers, strings, booleans, None, lists and dicts, "
        f"not {type(value).__name__} ({value!r:.80})"
    )


def _explain(cls: type, problem: Any, where: str) -> str:
    """One line for one of pydantic's errors."""
    unknown_key = problem["type"] in UNKNOWN_KEY
    location = _without_tags(cls, problem["loc"][1:], keep_last=unknown_key)
    path = dotted(where, location)
    if unknown_key:
        parent, key = location[:-1], str(location[-1])
        names = [name for holder in types_at(cls, parent) for name in fields_of(holder)]
        if key in names:  # of another member of a union
            whole = dotted(where, parent)
            return f"{path}: its kind has no such key; give {whole} as a whole to change its kind"
        return f"{path}: no such key{suggestion(key, names, dotted(where, parent) + '.')}"
    if problem["type"] in ("missing", "missing_argument"):
        return f"{path}: missing; it has no default"
    if problem["type"] in ("union_tag_invalid", "union_tag_not_found"):
        fields = [fields_of(member).get("kind") for member in types_at(cls, location)]
        kinds = list(dict.fromkeys(kind for field in fields for kind in typing.get_args(field)))
        if problem["type"] == "union_tag_not_found":
            return f"{path}: say its `kind`, one of {', '.join(kinds)}"
        name = str(problem["ctx"]["tag"])
        return f"{path}.kind: there is no {name!r}{suggestion(name, kinds)}"
    message = problem["msg"].removeprefix("Value error, ")
    message = message.replace("Input should be", "expected")
    if problem["type"] == "value_error":
        return f"{path}: {message}"
    value = problem["input"]
    return f"{path}: {message}, got {value!r:.80} ({type(value).__name__})"


def dotted(where: str, location: Location) -> str:
    return where + "".join(f"[{k}]" if isinstance(k, int) else f".{k}" for k in location)


def types_at(cls: Any, location: Location) -> list[Any]:
    """The types that may stand at `location` inside `cls`; empty where there is none."""
    kinds = list(alternatives(cls))
    for key in location:
        candidates: list[Any] = []
        for kind in kinds:
            origin, arguments = typing.get_origin(kind), typing.get_args(kind)
            if dataclasses.is_dataclass(kind):
                if key in fields_of(kind):
                    candidates.append(fields_of(kind)[str(key)])
            elif origin in (dict, Mapping):
                candidates.append(arguments[1])
            elif origin in (tuple, list) and isinstance(key, int):
                fixed = origin is tuple and Ellipsis not in arguments
                if not fixed or key < len(arguments):
                    candidates.append(arguments[key if fixed else 0])
        kinds = [kind for candidate in candidates for kind in alternatives(candidate)]
    return kinds


def _without_tags(cls: Any, location: Location, keep_last: bool) -> Location:
    """Drops the names of union members, which pydantic puts between the keys."""
    keys: Location = ()
    for i, key in enumerate(location):
        in_union = len(types_at(cls, keys)) > 1
        is_key = bool(types_at(cls, (*keys, key))) or (keep_last and i == len(location) - 1)
        if is_key or not in_union:
            keys = (*keys, key)
    return keys


def alternatives(kind: Any) -> Iterator[Any]:
    """The types that a union or an annotated type stands for."""
    origin = typing.get_origin(kind)
    if origin is typing.Annotated:
        yield from alternatives(typing.get_args(kind)[0])
    elif origin in (typing.Union, types.UnionType):
        for member in typing.get_args(kind):
            yield from alternatives(member)
    else:
        yield kind


@_cached
def fields_of(kind: Any) -> Mapping[str, Any]:
    """Name -> type of the fields that a dataclass's constructor takes."""
    if not dataclasses.is_dataclass(kind):
        return {}
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind) if field.init}
