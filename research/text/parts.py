"""Parts of a written conversation, and their tokens."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

from research.text.special_names import SpecialNames
from research.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Part:
    """A stretch of a written conversation that is tokenized apart."""

    text: str
    # How much its tokens count in training; 0: the model only reads them.
    weight: float = 0.0
    # The name of the token that it ends with, where an answer ends with it.
    end: str = ""


class PartEncoder:
    """Tokenizes parts, each apart: what the model is asked with has the tokens of training."""

    def __init__(self, tokenizer: Tokenizer, names: SpecialNames):
        self._tokenizer = tokenizer
        self._names = names

    def encode(self, conversations: Sequence[Sequence[Part]]) -> list[list[list[int]]]:
        """The tokens of every part of every conversation."""
        texts: list[str] = []
        contexts: list[str] = []
        is_name: list[bool] = []
        for parts in conversations:
            context = ""
            for part in parts:
                for number, piece in enumerate(self._names.split(part.text)):
                    texts.append(piece)
                    contexts.append(context)
                    is_name.append(number % 2 == 1)
                    context = self._context(piece, is_name[-1]) if piece else context
        ids = iter(self._encode_after(contexts, texts, is_name))
        return [
            [
                list(itertools.chain.from_iterable(next(ids) for _ in self._names.split(part.text)))
                for part in parts
            ]
            for parts in conversations
        ]

    def _context(self, text: str, is_name: bool) -> str:
        """What stands for `text` where what follows it is tokenized: its special token, or text."""
        if not self._tokenizer.opens_with_space:
            return ""
        names = [] if is_name else [n for n in self._tokenizer.named_tokens if text.endswith(n)]
        return max(names, key=len, default="\n")

    def _encode_after(
        self, contexts: Sequence[str], texts: Sequence[str], is_name: Sequence[bool]
    ) -> list[list[int]]:
        """The tokens of each text as they are after its context: no text but the first opens with
        a space of the tokenizer's own."""
        result: list[list[int]] = [[]] * len(texts)
        for special in (True, False):
            places = [i for i, name in enumerate(is_name) if name != special]
            pairs = [(contexts[i], texts[i]) for i in places]
            whole_ids = self._tokenizer.encode_batch([c + t for c, t in pairs], special=special)
            for place, (context, _), ids in zip(places, pairs, whole_ids, strict=True):
                size = len(self._tokenizer.encode(context, special=special)) if context else 0
                result[place] = ids[size:]
        return result
