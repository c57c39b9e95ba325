"""The door for configs: loose `ml_collections` outside, checked frozen dataclasses inside.

A config file defines `get_config()` or `get_config(arg)` and returns an `ml_collections.ConfigDict`
(or a dict, or the dataclass itself). `load` reads it, lays the command line's `--config.a.b=value`
over it, and converts it with `build`, which checks every key and type before anything is computed:

    arguments = parse(program_parser(__doc__))
    settings = load(TrainConfig, arguments.config, arguments.overrides)

Every field of the dataclass can be overridden, also one that the file leaves at its default.
(`ml_collections.config_flags` reaches only keys that the file wrote, and none that are None.)

The conversion is strict: an int may stand for a float, a list for a tuple, nothing else is changed.
A dataclass can add bounds to a field, `width: Annotated[int, pydantic.Field(gt=0)]`, or raise
ValueError in `__post_init__`: both are reported with the dotted path. A field that may hold one of
several dataclasses tells them apart by a `kind: Literal["..."]` field.

This module imports no JAX, so that a program answers `--help` and a misspelt flag at once.
"""

import argparse
import ast
import contextlib
import dataclasses
import difflib
import importlib.util
import json
import os
import re
import sys
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union

import ml_collections
import pydantic

T = TypeVar("T")
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


def build(cls: type[T], mapping: Any, where: str = "config") -> T:
    """Converts a mapping (dict, ConfigDict or dataclass) to the dataclass `cls`, strictly.

    Raises ValueError that names every wrong key by its dotted path, starting with `where`: unknown
    keys with the nearest valid one, values of a wrong type, and required keys that are missing.
    """
    text = json.dumps([_plain(mapping, where)])
    try:
        # JSON, because pydantic's strict mode then still takes a list for a tuple, and a mapping
        # for a dataclass.
        return _adapter(cls).validate_json(text)[0]
    except pydantic.ValidationError as error:
        problems = error.errors(include_url=False)
        # A misspelt key is why another is missing, so it comes first.
        problems.sort(key=lambda problem: problem["type"] not in UNKNOWN_KEY)
        explained = [_explain(cls, problem, where) for problem in problems]
    raise ValueError("\n".join(explained))


def to_dict(obj: Any) -> dict[str, Any]:
    """The inverse of `build`: nested dicts and lists that JSON can hold."""
    return _plain(obj, "config")


def dump_json(obj: Any, path: str | Path) -> None:
    """Writes a config dataclass as indented JSON."""
    Path(path).write_text(json.dumps(to_dict(obj), indent=2) + "\n", encoding="utf-8")


def load_json(cls: type[T], path: str | Path) -> T:
    """Reads a config that `dump_json` wrote. Raises ValueError if it is torn or does not fit."""
    from research import paths  # here: help needs none of it

    try:
        mapping = json.loads(paths.absolute(path).read_bytes())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {error.lineno}: not JSON: {error.msg}") from None
    return build(cls, mapping, where=f"{path}: config")


def load(cls: type[T], file: str, overrides: Iterable[str] = ()) -> T:
    """Loads a config file and lays command-line overrides over it.

    Args:
        cls: the dataclass that the config must fit.
        file: `path/to/config.py`, or `path/to/config.py:arg`, where `arg` goes to `get_config`.
        overrides: `a.b=value` each. A list's element is `a[0].b`. Values are JSON or Python
            literals (`3e-4`, `true`, `None`, `[1, 2]`); a field that holds text takes them as is.

    Raises:
        FileNotFoundError: there is no such file; names the nearest.
        ValueError: the file, or an override, does not fit `cls`; names the key.
    """
    config = build(cls, _call_get_config(file))
    overrides = list(overrides)
    if not overrides:
        return config
    mapping = to_dict(config)
    for override in overrides:
        path, equals, text = override.partition("=")
        location = _location(path)
        if not equals or not location:
            raise ValueError(f"--config.{override}: write it as --config.key=value")
        _set(mapping, location, _parse_value(cls, location, text), path)
    return build(cls, mapping)


def program_parser(description: str, *, config_required: bool = True) -> argparse.ArgumentParser:
    """A parser whose `--help` is the program's docstring followed by its flags.

    It has `--config FILE[:ARG]`; the program adds its own flags before it calls `parse`.
    """
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config",
        metavar="FILE[:ARG]",
        required=config_required,
        help="a config file with get_config(); override its keys with --config.a.b=value",
    )
    return parser


def add_distributed(parser: argparse.ArgumentParser) -> None:
    """Gives a program the flag `--distributed`, after which it calls `hosts.join`."""
    parser.add_argument(
        "--distributed",
        action="store_true",
        help="this is one of several processes, as JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and "
        "JAX_PROCESS_ID say, or a TPU pod, GKE, Slurm or Open MPI",
    )


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses `argv` (default: the command line); `.overrides` holds the `--config.` ones.

    A misspelt flag ends the program with exit status 2 and the nearest flag's name.
    """
    arguments, unknown = parser.parse_known_args(argv)
    arguments.overrides = []
    known = [option for action in parser._actions for option in action.option_strings]
    for flag in unknown:
        name = flag.partition("=")[0]
        if flag.startswith("--config.") and "=" in flag:
            arguments.overrides.append(flag.removeprefix("--config."))
        elif flag.startswith("--config."):
            parser.error(f"{flag}: write it as {flag}=value")
        else:
            parser.error(f"unknown argument {name}{_nearest(name, known)}")
    return arguments


def one_of(classes: Iterable[type]) -> Any:
    """The type of a field that holds one of several dataclasses, told apart by their `kind`."""
    return Annotated[Union[tuple(classes)], pydantic.Field(discriminator="kind")]  # noqa: UP007


def on_disk(text: str) -> Path:
    """The `type` of an option of argparse for a file on a disk, not in a bucket."""
    if "://" in text:
        raise argparse.ArgumentTypeError(f"{text} is in a bucket: name a file on a disk")
    return Path(text)


@contextlib.contextmanager
def clear_errors() -> Iterator[None]:
    """Wrong input ends a program with its message; only our own mistakes end with a traceback."""
    try:
        yield
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (ValueError, OSError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
    except Exception as error:
        from research import paths

        if not paths.is_of_storage(error) or (said := paths.told(error)) is None:
            raise
        sys.exit(f"error: {said}")
    except KeyboardInterrupt:
        print("interrupted before anything was saved", file=sys.stderr)
        sys.exit(130)


def _adapter(cls: Any) -> pydantic.TypeAdapter:
    # Standard dataclasses take over the config of the type around them, so `cls` needs one.
    strict = pydantic.ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    return pydantic.TypeAdapter(tuple[cls], config=strict)


def _plain(value: Any, path: str) -> Any:
    """Turns ConfigDicts, dataclasses and tuples into the dicts and lists that JSON knows."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {name: getattr(value, name) for name in _fields(type(value))}
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
    path = _dotted(where, location)
    if unknown_key:
        parent, key = location[:-1], str(location[-1])
        names = [name for holder in _types_at(cls, parent) for name in _fields(holder)]
        if key in names:  # of another member of a union
            whole = _dotted(where, parent)
            return f"{path}: its kind has no such key; give {whole} as a whole to change its kind"
        return f"{path}: no such key{_nearest(key, names, _dotted(where, parent) + '.')}"
    if problem["type"] in ("missing", "missing_argument"):
        return f"{path}: missing; it has no default"
    message = problem["msg"].removeprefix("Value error, ")
    message = message.replace("Input should be", "expected")
    if problem["type"] == "value_error":
        return f"{path}: {message}"
    found = problem["input"]
    return f"{path}: {message}, got {found!r:.80} ({type(found).__name__})"


def _nearest(name: str, names: Iterable[str], prefix: str = "") -> str:
    names = sorted(set(names))
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {prefix}{close[0]}?"
    return f"; there are: {', '.join(names)}" if names else ""


def _dotted(where: str, location: Location) -> str:
    return where + "".join(f"[{k}]" if isinstance(k, int) else f".{k}" for k in location)


def _location(path: str) -> Location:
    """`parts[0].weight` -> ("parts", 0, "weight"); () where it is not such a path."""
    if not re.fullmatch(r"[^.\[\]]+(\[\d+\])*(\.[^.\[\]]+(\[\d+\])*)*", path):
        return ()
    found = re.findall(r"\[(\d+)\]|([^.\[\]]+)", path)
    return tuple(int(index) if index else name for index, name in found)


def _set(mapping: Any, location: Location, value: Any, path: str) -> None:
    """Sets one value; parents that are absent or None become dicts, for `build` to judge."""
    holder = mapping
    for i, key in enumerate(location):
        if isinstance(key, int):
            if not isinstance(holder, list) or key >= len(holder):
                size = f"has {len(holder)} elements" if isinstance(holder, list) else "is no list"
                raise ValueError(f"config.{path}: {_dotted('config', location[:i])} {size}")
        elif not isinstance(holder, dict):
            parent = _dotted("config", location[:i])
            raise ValueError(f"config.{path}: {parent} is {holder!r:.80}, which has no keys")
        if i == len(location) - 1:
            holder[key] = value
            return
        if isinstance(holder, dict) and holder.get(key) is None:
            holder[key] = {}
        holder = holder[key]


def _parse_value(cls: type, location: Location, text: str) -> Any:
    expected = _types_at(cls, location)
    if expected and all(_is_text(kind) for kind in expected):
        optional = type(None) in expected
        return None if optional and text in ("None", "null") else text
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError):
            pass
    return text


def _is_text(kind: Any) -> bool:
    if typing.get_origin(kind) is typing.Literal:
        return any(isinstance(choice, str) for choice in typing.get_args(kind))
    return kind in (str, type(None))


def _types_at(cls: Any, location: Location) -> list[Any]:
    """The types that may stand at `location` inside `cls`; empty where there is none."""
    kinds = list(_alternatives(cls))
    for key in location:
        found: list[Any] = []
        for kind in kinds:
            origin, arguments = typing.get_origin(kind), typing.get_args(kind)
            if dataclasses.is_dataclass(kind):
                if key in _fields(kind):
                    found.append(_fields(kind)[str(key)])
            elif origin is dict:
                found.append(arguments[1])
            elif origin in (tuple, list) and isinstance(key, int):
                fixed = origin is tuple and Ellipsis not in arguments
                if not fixed or key < len(arguments):
                    found.append(arguments[key if fixed else 0])
        kinds = [kind for candidate in found for kind in _alternatives(candidate)]
    return kinds


def _without_tags(cls: Any, location: Location, keep_last: bool) -> Location:
    """Drops the names of union members, which pydantic puts between the keys."""
    kept: Location = ()
    for i, key in enumerate(location):
        in_union = len(_types_at(cls, kept)) > 1
        is_key = bool(_types_at(cls, (*kept, key))) or (keep_last and i == len(location) - 1)
        if is_key or not in_union:
            kept = (*kept, key)
    return kept


def _alternatives(kind: Any) -> Iterator[Any]:
    origin = typing.get_origin(kind)
    if origin is typing.Annotated:
        yield from _alternatives(typing.get_args(kind)[0])
    elif origin in (typing.Union, types.UnionType):
        for member in typing.get_args(kind):
            yield from _alternatives(member)
    else:
        yield kind


def _fields(kind: Any) -> dict[str, Any]:
    """Name -> type of the fields that a dataclass's constructor takes."""
    if not dataclasses.is_dataclass(kind):
        return {}
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind) if field.init}


def _call_get_config(file: str) -> Any:
    name, _, argument = file.partition(":")
    path = Path(name)
    if not path.is_file():
        siblings = [str(sibling) for sibling in path.parent.glob("*.py")]
        raise FileNotFoundError(f"no config file {name}{_nearest(name, siblings)}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{name}: a config file is a Python file, *.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise ValueError(f"{name}: defines no get_config()")
    return module.get_config(argument) if argument else module.get_config()
