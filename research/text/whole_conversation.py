"""What `{% generation %}` blocks mark where the whole conversation is rendered, as in transformers.

An answer is found in the conversation up to it. A template may mark it otherwise once more
follows, as one that marks the last answer alone; then the whole conversation decides.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence

from research.text.parts import Part
from research.text.rendering import RenderingError, View
from research.text.special_names import PLACE, find_blocks
from research.text.template_input import TemplateInput


def keep_marked(
    number: int, prompt: str, parts: Sequence[Part], rendered: str, is_exact: bool
) -> tuple[Part, ...]:
    """The parts of an answer that is trained on, without weight where the whole does not mark them.

    An answer that the whole writes otherwise (it drops earlier thoughts, say) has a text of its
    own and stays as it is.

    Args:
      number: of the answer's message.
      prompt: the text before it.
      parts: of the answer, marked as in the conversation up to it.
      rendered: the whole conversation, with the signs of its blocks.
      is_exact: whether all that the blocks mark has weight.

    Raises:
      ValueError: the whole marks a piece of a part, more than its parts, or no end.
    """
    text, blocks = find_blocks(rendered)
    start = len(prompt)
    if not text.startswith((prompt + "".join(part.text for part in parts)).rstrip()):
        return tuple(parts)
    result = []
    for part in parts:
        size = len(part.text)
        marked = sum(max(0, min(b, start + size) - max(a, start)) for a, b in blocks)
        start += size
        if part.weight and 0 < marked < size or not part.weight and marked and is_exact:
            raise ValueError(_differs(number, f"as {part.text[:40]!r} otherwise"))
        result.append(part if marked else dataclasses.replace(part, weight=0.0))
    has_end = any(part.weight for part in result if part.end)
    if any(part.weight for part in result) and not has_end:
        raise ValueError(_differs(number, "without its end"))
    return tuple(result)


def check_others(source: TemplateInput, checked_roles: set[frozenset[str]]) -> None:
    """Raises ValueError where blocks mark what others than the assistant say, which transformers
    would train on.

    Args:
      source: a conversation and its template.
      checked_roles: the speakers of conversations that were looked at before, and of this one then.
    """
    roles = frozenset(message["role"] for message in source.messages)
    if roles in checked_roles:
        return
    signed = tuple(
        (number, "content", f"{message['content']}{PLACE}{number}{PLACE}")
        for number, message in enumerate(source.marked)
        if number not in source.conversation.answers and isinstance(message.get("content"), str)
    )
    (rendered,) = source.render([View(len(source.messages), changes=signed)])
    if isinstance(rendered, RenderingError):  # looked at again where the next one can be
        return
    text, blocks = find_blocks(rendered)
    for sign in re.finditer(f"{PLACE}([0-9]+){PLACE}", text):
        if any(start <= sign.start() < stop for start, stop in blocks):
            role = source.marked[int(sign[1])]["role"]
            raise ValueError(
                f"The chat template's {{% generation %}} blocks mark message {sign[1]}, of the "
                f"{role}: only what the assistant says is trained on. Write it outside of them, "
                "or give the objective another `template`."
            )
    checked_roles.add(roles)


def check_marked(parts: Iterable[Part]) -> None:
    """Raises ValueError where no part of any answer has weight."""
    if not any(part.weight for part in parts):
        raise ValueError(
            "The chat template's {% generation %} blocks mark none of the answers that are to be "
            "trained on, once the whole conversation is written: leave out what follows them, or "
            "give the objective another `template`."
        )


def _differs(number: int, how: str) -> str:
    return (
        f"The chat template's {{% generation %}} blocks mark message {number} {how} where the "
        "whole conversation is written, and not where it ends there: give the objective another "
        "`template`."
    )
