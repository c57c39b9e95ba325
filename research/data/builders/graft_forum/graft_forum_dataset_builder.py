"""Forum: open-domain conversations between two people."""

from __future__ import annotations

import json

from research.data.builders.archives import read_members
from research.data.builders.assets import ASSETS, fetch
from research.data.builders.documents import Corpus, Document, DocumentBuilder

ASSET = "chitchat-dataset"


def conversation_text(turns: list[list[dict[str, str]]]) -> str:
    """The messages of all turns, one per line (line breaks within a message become spaces)."""
    messages = (" ".join(message["text"].split()) for turn in turns for message in turn)
    return "\n".join(message for message in messages if message)


class Builder(DocumentBuilder):
    """One document per conversation, one message per line; senders are left out."""

    DESCRIPTION = "Conversations between students, one message per line."
    HOMEPAGE = ASSETS[ASSET].homepage
    LICENCE = ASSETS[ASSET].licence
    CITATION = "Myers, Etchart, Fulda: Conversational Scaffolding (ICAART 2020), BYU PCC lab."

    def read_corpus(self) -> Corpus:
        """Reads every conversation of dataset.json."""
        ((_, content),) = read_members(fetch(ASSET), ASSETS[ASSET].members)
        conversations = json.loads(content)
        documents = [
            Document(key, conversation_text(conversation["messages"]))
            for key, conversation in conversations.items()
        ]
        return Corpus(documents, ASSETS[ASSET].provenance())
