"""The text of an answer while its tokens come, up to the first of its stop strings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from research.text.tokenizer import TextStream, Tokenizer


class AnswerText:
    """Text of tokens that come one by one: never half a character, never a part of a stop string.

    The stop string that is whole first ends the answer, of several the one that begins first; it is
    no part of it. So the answer does not depend on where its tokens begin and end.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stops: Sequence[str] = (),
        marker_tokens: Mapping[int, str] | None = None,
    ):
        """
        Args:
          stops: texts that end the answer.
          marker_tokens: special tokens that are part of the text -> their names; others are none.
        """
        self._stream, self._stops = TextStream(tokenizer, names=marker_tokens), tuple(stops)
        # what may yet turn out to begin a stop string
        self._held_back = ""
        # whether a stop string came: nothing follows
        self.is_stopped = False

    def add(self, token: int) -> str:
        """What can be shown since the last token."""
        return self._show(self._stream.add(token))

    def finish(self) -> str:
        """What is left when the last token has come."""
        text = self._show(self._stream.finish()) + self._held_back
        self._held_back = ""
        return text

    def _show(self, part: str) -> str:
        if self.is_stopped:
            return ""
        text = self._held_back + part
        places = [(text.find(stop), stop) for stop in self._stops]
        ends = [(place + len(stop), place) for place, stop in places if place >= 0]
        if ends:
            self.is_stopped, self._held_back = True, ""
            return text[: min(ends)[1]]
        size = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held_back = text[len(text) - size :]
        return text[: len(text) - size]


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of a text that a stop string begins with."""
    sizes = range(min(len(text), len(stop) - 1), 0, -1)
    return next((size for size in sizes if text.endswith(stop[:size])), 0)
