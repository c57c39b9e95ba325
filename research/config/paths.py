"""Dotted paths into configs: `schedule.learning_rate`, `data.sources[0].weight`.

They say where a value stands in a config, on the command line and along the axes of a study.
"""

import dataclasses
import functools
import re
import typing
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from research.config.renamed import current_path
from research.config.schema import Location, alternatives, build, dotted, fields_of, to_dict
from research.config.suggestions import nearest_names

T = TypeVar("T")


def location(path: str) -> Location:
    """`parts[0].weight` -> ("parts", 0, "weight"); () where it is not such a path."""
    if not re.fullmatch(r"[^.\[\]]+(\[\d+\])*(\.[^.\[\]]+(\[\d+\])*)*", path):
        return ()
    parts = re.findall(r"\[(\d+)\]|([^.\[\]]+)", path)
    return tuple(int(index) if index else name for index, name in parts)


def set_at(mapping: Any, where: Location, value: Any, path: str) -> None:
    """Sets one value; parents that are absent or None become dicts, for `build` to judge."""
    holder = mapping
    for i, key in enumerate(where):
        if isinstance(key, int):
            if not isinstance(holder, list) or key >= len(holder):
                size = f"has {len(holder)} elements" if isinstance(holder, list) else "is no list"
                raise ValueError(f"config.{path}: {dotted('config', where[:i])} {size}")
        elif not isinstance(holder, dict):
            parent = dotted("config", where[:i])
            raise ValueError(f"config.{path}: {parent} is {holder!r:.80}, which has no keys")
        if i == len(where) - 1:
            holder[key] = value
            return
        if isinstance(holder, dict) and holder.get(key) is None:
            holder[key] = {}
        holder = holder[key]


def replace(config: T, values: Mapping[str, Any]) -> T:
    """A config with other values at some paths, checked anew.

    Raises:
        ValueError: a path that the config does not have, or a value that does not fit; names it.
    """
    mapping = to_dict(config)
    for path, value in values.items():
        path = current_path(path, type(config).__name__)
        where = location(path)
        if not where:
            raise ValueError(f"{path!r} is no path of a config, such as schedule.learning_rate")
        set_at(mapping, where, value, path)
    return build(type(config), mapping)


def full_path(cls: type, name: str) -> str:
    """The path of a field of `cls` by its end: `learning_rate` -> `schedule.learning_rate`.

    Of several, the one that lies highest.

    Raises:
        ValueError: no field ends so, or several as high do.
    """
    path = current_path(name, cls.__name__)
    known = _all_paths(cls)
    if re.sub(r"\[\d+\]", "[]", path) in known:
        return path
    direct_paths = [each for each in known if "[]" not in each]  # the others need an index
    ending = [each for each in direct_paths if each.endswith(f".{path}")]
    least = min((each.count(".") for each in ending), default=0)
    matches = [each for each in ending if each.count(".") == least]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise ValueError(f"{name!r} is the end of several keys: {', '.join(matches)}")
    size = path.count(".") + 1
    ends = {".".join(each.split(".")[-size:]): each for each in reversed(direct_paths)}
    nearest = nearest_names(path, ends, cutoff=0.5)
    hint = f"; did you mean {ends[nearest[0]]}?" if nearest else ""
    raise ValueError(f"no key of the config ends with {name!r}{hint}")


@functools.cache
def _all_paths(cls: type) -> tuple[str, ...]:
    return tuple(dict.fromkeys(_paths(cls)))


def _paths(cls: Any, prefix: str = "", inside: tuple[Any, ...] = ()) -> Iterator[str]:
    """The paths of all fields, with [] for an index; those of a union are its members'."""
    for kind in alternatives(cls):
        origin, arguments = typing.get_origin(kind), typing.get_args(kind)
        if origin in (tuple, list) and arguments:
            for argument in arguments:
                yield from _paths(argument, f"{prefix}[]", inside)
        elif dataclasses.is_dataclass(kind) and kind not in inside:
            for name, field_type in fields_of(kind).items():
                path = f"{prefix}.{name}" if prefix else name
                yield path
                yield from _paths(field_type, path, (*inside, kind))
