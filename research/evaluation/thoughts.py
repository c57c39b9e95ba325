"""What an answer says after its thoughts."""

from __future__ import annotations

from collections.abc import Sequence

from research.text.tokenizer import Tokenizer


def opens_thoughts(tokenizer: Tokenizer, prompt_ids: Sequence[int]) -> bool:
    """Whether a prompt ends where the model is to think."""
    return tokenizer.decode(prompt_ids[-8:], special=True).rstrip().endswith("<think>")


def without_thoughts(text: str, are_open: bool = False) -> str:
    """What an answer says after its thoughts; nothing where they do not end.

    Args:
      are_open: whether the prompt began them.
    """
    _, end, rest = text.rpartition("</think>")
    if end:
        return rest
    return "" if are_open or text.lstrip().startswith("<think>") else text
