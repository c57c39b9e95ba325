"""The end of an error about an unknown name: the nearest known one, or all of them."""

import difflib
from collections.abc import Iterable


def suggestion(name: str, names: Iterable[str], prefix: str = "") -> str:
    """`; did you mean PREFIX+NEAREST?`, else `; there are: ...`, else nothing."""
    names = sorted(set(names))
    matches = nearest_names(name, names, cutoff=0.5)
    if matches:
        return f"; did you mean {prefix}{matches[0]}?"
    return f"; there are: {', '.join(names)}" if names else ""


def nearest_names(
    name: str, names: Iterable[str], count: int = 1, cutoff: float = 0.6
) -> list[str]:
    """At most `count` of the names most like `name`, the nearest first.

    Args:
      cutoff: the least likeness, from 0 (any name) to 1 (the same).
    """
    return difflib.get_close_matches(name, list(names), count, cutoff)
