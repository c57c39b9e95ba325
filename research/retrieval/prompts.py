"""Passages in a prompt: as many of the best as a budget of tokens holds, each with where it is
from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from research.retrieval.base import RetrievalConfig
from research.retrieval.measures import recall
from research.retrieval.passages import Passage, Passages
from research.retrieval.ranking import Ranking
from research.text.conversation import Conversation
from research.text.tokenizer import Tokenizer

_PASSAGE = "[{number}] {id}\n{text}"
_EXAMPLE = "[{number}] {id}\n{text}\n{completion}"


@dataclasses.dataclass(frozen=True)
class PromptPassages:
    """What was found for a question, and how it is written."""

    # ids of the passages that the budget holds, best first, and each as it is written
    ids: tuple[str, ...]
    texts: tuple[str, ...]
    # the document of each
    documents: tuple[str, ...]
    # recall and the reciprocal rank of all that was found, where the right documents are known
    scores: Mapping[str, float]
    # the right documents, where they are known
    right: frozenset[str]
    config: RetrievalConfig

    def measure(self, count: int) -> dict[str, float]:
        """How well the right documents were found, where they are known: among the best, and among
        the first `count` passages."""
        if not self.right:
            return {}
        return {**self.scores, "recall@prompt": recall(self.documents[:count], self.right)}

    def write(self, prompt: str, count: int) -> str:
        """The prompt with the first `count` passages; without any it stays as it is."""
        if not count:
            return prompt
        passages = self.config.separator.join(self.texts[:count])
        return self.config.template.format_map({"passages": passages, "prompt": prompt})

    def add_to(self, conversation: Conversation, count: int) -> Conversation:
        """The conversation with passages in its last message."""
        *before, last = conversation.messages
        message = {**last, "content": self.write(last["content"], count)}
        return dataclasses.replace(conversation, messages=(*before, message))


def write_passage(
    config: RetrievalConfig, passages: Passages, passage: Passage, number: int
) -> str:
    """A passage as a prompt has it."""
    default = _PASSAGE if passage.completion is None else _EXAMPLE
    return (config.passage_template or default).format_map(
        {
            "number": number,
            "id": passage.id,
            "origin": passages.origin(passage),
            "text": passage.text,
            "completion": passage.completion or "",
        }
    )


def fit(
    config: RetrievalConfig, passages: Passages, ranking: Ranking, tokenizer: Tokenizer
) -> tuple[list[Passage], list[str]]:
    """The best passages whose text together has at most `max_tokens` tokens, and each as written.

    One that does not fit is passed over for the next.
    """
    chosen_passages: list[Passage] = []
    texts: list[str] = []
    for row in ranking.rows:
        if len(texts) == config.passages:
            break
        passage = passages[row]
        text = write_passage(config, passages, passage, len(texts) + 1)
        if count_tokens(config, [*texts, text], tokenizer) <= config.max_tokens:
            chosen_passages.append(passage)
            texts.append(text)
    return chosen_passages, texts


def count_tokens(config: RetrievalConfig, texts: Sequence[str], tokenizer: Tokenizer) -> int:
    """Tokens of passages as the template puts them together."""
    return len(tokenizer.encode(config.separator.join(texts)))
