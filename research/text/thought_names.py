"""What thoughts stand between, by the names of a tokenizer's tokens."""

from __future__ import annotations

import re
from collections.abc import Iterable

from research.text.tokenizer import Tokenizer

# Before thoughts, and behind them.
Pair = tuple[str, str]
THINK: Pair = ("<think>", "</think>")
WORDS = frozenset("think thinking thought thoughts reason reasoning".split())
_OPENING, _CLOSING = frozenset(("start", "begin", "open")), frozenset(("/", "end", "close"))


def thought_pairs(names: Iterable[str]) -> list[Pair]:
    """Tokens that thoughts stand between, by their names: `[THINK]` and `[/THINK]`,
    `<|START_THINKING|>` and `<|END_THINKING|>`, `<|channel>` and `<channel|>`."""
    opening: dict[tuple[str, ...], str] = {}
    closing: dict[tuple[str, ...], str] = {}
    for name in sorted(names):
        words = re.findall(r"[a-z]+|(?<=\W)/(?=[a-z])", name.lower())
        stem = tuple(word for word in words if word not in _OPENING | _CLOSING | {"of"})
        halves = name.startswith("<|") - name.endswith("|>")  # a bar on one side alone
        if WORDS.isdisjoint(stem) and not (halves and stem == ("channel",)):
            continue
        is_closing = halves < 0 or not _CLOSING.isdisjoint(words)
        (closing if is_closing else opening)[name[0], *stem] = name
    return [(opening[stem], end) for stem, end in closing.items() if stem in opening]


class ThoughtNames:
    """Thoughts that a message writes into its content.

    Attributes:
      pattern: matches them at an answer's beginning.
    """

    def __init__(self, tokenizer: Tokenizer):
        pairs = thought_pairs(tokenizer.named_tokens)
        self._special = [pair for pair in pairs if not tokenizer.special.isdisjoint(pair)]
        each = [
            f"{re.escape(begin)}.*?{re.escape(end)}"
            for begin, end in dict.fromkeys([THINK, *pairs])
            if (begin, end) not in self._special
        ]
        self.pattern = re.compile(rf"\s*(?:{'|'.join(each) or '(?!)'})\s*", re.DOTALL)

    def check(self, number: int, content: str) -> None:
        """Raises ValueError where message `number` spells special tokens around its thoughts: in a
        message they are only text, and no template tells the thoughts from the answer."""
        for begin, end in self._special:
            if content.lstrip().startswith(begin) and end in content:
                raise ValueError(
                    f"Message {number} writes its thoughts between {begin} and {end}, which are "
                    "special tokens: in a message they are only text. Give the thoughts as "
                    "`reasoning_content`, and the objective a `template` that reads it."
                )
