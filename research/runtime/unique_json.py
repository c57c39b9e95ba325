"""JSON in which no object has a key twice: of two values, one would be lost without a word."""

import collections
import json
from typing import Any


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        numbers = collections.Counter(name for name, _ in pairs)
        twice = next(name for name, number in numbers.items() if number > 1)
        raise ValueError(f"the key {twice!r} appears twice in one object: keep one of them")
    return content


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique)
_STRICT = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_refuse)


def parse(content: bytes | str, strict: bool = False) -> Any:
    """The value of a JSON text.

    Args:
        strict: without the numbers of Python that JSON has not, NaN and Infinity.

    Raises:
        ValueError: it is no JSON, nested too deeply, or an object in it has a key twice.
    """
    if isinstance(content, bytes):
        content = content.decode(json.detect_encoding(content), "surrogatepass")
    try:
        return (_STRICT if strict else _DECODER).decode(content)
    except RecursionError:
        raise ValueError("nested too deeply") from None
