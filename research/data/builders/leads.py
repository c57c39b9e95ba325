"""Sentences of the lead of an encyclopedia's article."""

from __future__ import annotations

import re

SENTENCE_END = re.compile(r"(?<=[a-z0-9\"”])\.(?=\s|\Z)")
_BRACKETS = re.compile(r"\s*\([^()]*\)")


def without_brackets(text: str) -> str:
    """The text without what stands in brackets, or in brackets in brackets."""
    while text != (text := _BRACKETS.sub("", text)):
        pass
    return text


def sentences(text: str) -> list[str]:
    """Whole sentences, each with its full stop and without line breaks."""
    parts = (" ".join(part.split()) for part in SENTENCE_END.split(text)[:-1])
    return [f"{part}." for part in parts if part]
