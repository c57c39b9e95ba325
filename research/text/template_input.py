"""What a chat template reads of a conversation, and its renderings."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from research.text import chat_template, rendering
from research.text.conversation import Conversation
from research.text.rendering import RenderingError, View
from research.text.special_names import SpecialNames, find_blocks


@dataclasses.dataclass(frozen=True)
class TemplateInput:
    """What a template reads of a conversation."""

    conversation: Conversation
    template: str
    # Messages and variables as the record has them.
    messages: list[dict[str, Any]]
    variables: Mapping[str, Any]
    # The same with the names of special tokens marked.
    marked: list[dict[str, Any]]
    marked_variables: Mapping[str, Any]
    names: SpecialNames
    # Fields that mean nothing, by their names or dotted paths.
    ignored: frozenset[str] = frozenset()

    @property
    def contents(self) -> chat_template.Contents:
        """What the template uses."""
        return chat_template.read_contents(self.template)

    def without_blocks(self, text: str) -> str:
        """A rendered text without the signs of `{% generation %}` blocks."""
        return find_blocks(text)[0] if self.contents.has_generation else text

    def render(self, views: Sequence[View]) -> list[str | RenderingError]:
        """The text of each view, names of special tokens in messages marked."""
        texts = rendering.render_views(self.template, self.marked, self.marked_variables, views)
        is_marked = (self.marked, self.marked_variables) != (self.messages, self.variables)
        if not is_marked or any(view.changes or view.variables for view in views):
            return texts
        # A template may look for such a name; then what it does is not what it would do with it.
        plain_texts = rendering.render_views(self.template, self.messages, self.variables, views)
        return [self._compare(*pair) for pair in zip(texts, plain_texts, strict=True)]

    def _compare(
        self, text: str | RenderingError, plain: str | RenderingError
    ) -> str | RenderingError:
        if isinstance(text, RenderingError) or isinstance(plain, RenderingError):
            return plain if isinstance(plain, RenderingError) else text
        if self.names.unmark(text) == plain:
            return text
        return RenderingError(
            "a message spells a special token, which the template treats in a way of its own"
        )
