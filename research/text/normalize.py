"""When two texts are the same, and what their words are: one answer for every comparison."""

import re
import unicodedata

_WORD = re.compile(r"\w+")


def normalize(text: str) -> str:
    """Text without differences of case, white space, compatible characters and byte-order marks."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text).replace("\ufeff", "")
    return " ".join(text.casefold().split())


def words_of(text: str) -> list[str]:
    """Lower-case words without punctuation."""
    return _WORD.findall(text.lower())
