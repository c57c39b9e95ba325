"""Leaves of a JSON value: its texts, numbers and switches, each by the path to it."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

# Keys of objects and numbers of list items, from the outside in.
Path = tuple[Any, ...]


def find(value: Any, ignored: Collection[str] = (), path: Path = ()) -> Iterator[Path]:
    """The leaves that say something: null and what is empty say that there is nothing.

    Args:
      value: JSON.
      ignored: keys, or dotted paths below the outermost list, whose leaves are passed over.
      path: of the value itself.
    """
    if isinstance(value, Mapping):
        for key, item in value.items():
            if key not in ignored and spell((*path[1:], key)) not in ignored:
                yield from find(item, ignored, (*path, key))
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from find(item, ignored, (*path, number))
    elif value is not None and value != "":
        yield path


def spell(path: Path) -> str:
    """A path in a line, such as `function.arguments.city`."""
    return ".".join(map(str, path))


def value(content: Any, path: Path) -> Any:
    """The leaf at a path."""
    for key in path:
        content = content[key]
    return content


def sign(content: Any, signs: Mapping[Path, str], path: Path = ()) -> Any:
    """The same JSON with a sign behind the texts at some paths, and in place of other leaves."""
    if path in signs:
        return content + signs[path] if isinstance(content, str) else signs[path]
    if isinstance(content, Mapping):
        return {key: sign(item, signs, (*path, key)) for key, item in content.items()}
    if isinstance(content, list | tuple):
        return [sign(item, signs, (*path, number)) for number, item in enumerate(content)]
    return content


def change(content: Any, path: Path) -> Any:
    """The same JSON with another leaf of the same type at a path."""
    if not path:
        if isinstance(content, bool):
            return not content
        return content + ("x" if isinstance(content, str) else 1)
    key, rest = path[0], path[1:]
    if isinstance(content, Mapping):
        return {k: change(v, rest) if k == key else v for k, v in content.items()}
    return [change(v, rest) if number == key else v for number, v in enumerate(content)]
