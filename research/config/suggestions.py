"""The end of an error about an unknown name: the nearest known one, or all of them."""

import difflib
from collections.abc import Iterable


def suggestion(name: str, names: Iterable[str], prefix: str = "") -> str:
    """`; did you mean PREFIX+NEAREST?`, else `; there are: ...`, else nothing."""
    names = sorted(set(names))
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {prefix}{close[0]}?"
    return f"; there are: {', '.join(names)}" if names else ""
