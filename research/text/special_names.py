"""The names of special tokens that a message spells out: only text, wherever a template writes it.

A name is replaced by a mark while the template runs, so that it can be told from the tokens that
the template writes itself, and is tokenized by its characters afterwards.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from research.text.template_process import BLOCK_END, BLOCK_START

# Stands around a number in place of a special token's name in a message, and where a place in a
# text is looked for; no characters of any text.
_MARK, PLACE = "\ufdd0", "\ufdd3"
_MARKED = re.compile(f"{_MARK}([0-9]+){_MARK}")


class SpecialNames:
    """Marks the names of a tokenizer's special tokens, and what stands for them."""

    def __init__(self, names: Collection[str]):
        signs = [_MARK, BLOCK_START, BLOCK_END, PLACE]
        self._names = [*signs, *sorted(names, key=len, reverse=True)]
        self._numbers = {name: number for number, name in enumerate(self._names)}
        self._pattern = re.compile("|".join(map(re.escape, self._names)))

    def mark(self, value: Any) -> Any:
        """A JSON value with every name in its strings marked, keys included."""
        if isinstance(value, str):
            return self._pattern.sub(lambda m: f"{_MARK}{self._numbers[m.group()]}{_MARK}", value)
        if isinstance(value, Mapping):
            return {self.mark(key): self.mark(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.mark(item) for item in value]
        return value

    def unmark(self, text: str) -> str:
        """Text as the messages had it."""
        return _MARKED.sub(lambda match: self._names[int(match.group(1))], text)

    def is_in(self, text: str) -> bool:
        """Whether the template itself writes a name in a text."""
        return self._pattern.search(text) is not None

    def split(self, text: str) -> list[str]:
        """What the template writes, and at odd places the names that messages spell in it."""
        pieces = _MARKED.split(text)
        pieces[1::2] = [self._names[int(number)] for number in pieces[1::2]]
        return pieces


def find_blocks(text: str) -> tuple[str, list[tuple[int, int]]]:
    """A rendered text without the signs of `{% generation %}` blocks, and where they lie in it."""

    def intervals() -> Iterator[tuple[int, int]]:
        start = at = 0
        for piece in re.split(f"({BLOCK_START}|{BLOCK_END})", text):
            if piece == BLOCK_START:
                start = at
            elif piece == BLOCK_END:
                yield start, at
            else:
                at += len(piece)

    return re.sub(f"[{BLOCK_START}{BLOCK_END}]", "", text), list(intervals())
