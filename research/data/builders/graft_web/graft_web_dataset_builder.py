"""Web pages: HTML documentation, tags stripped."""

from __future__ import annotations

import logging
import re
from pathlib import PurePosixPath

from research.data.builders.archives import read_members
from research.data.builders.assets import ASSETS, fetch_first
from research.data.builders.documents import Corpus, Document, DocumentBuilder
from research.data.builders.graft_web.html_text import html_text

logger = logging.getLogger(__name__)

# The second only where the first cannot be had, for example without apt.
SOURCES = ("python3.11-doc", "SQLAlchemy")
# Lists of links and generated pages, not prose.
_NO_PROSE = re.compile(r"(genindex.*|py-modindex|search|contents|notfound|copyright)\.html")


class Builder(DocumentBuilder):
    """One document per page, main content only; `info.metadata["source"]` says which site."""

    DESCRIPTION = "Pages of a documentation site (Python's, else SQLAlchemy's), as text."
    HOMEPAGE = ASSETS[SOURCES[0]].homepage
    LICENCE = "; ".join(f"{name}: {ASSETS[name].licence}" for name in SOURCES)
    CITATION = "Python Software Foundation: Python 3.11 documentation. SQLAlchemy authors."

    def read_corpus(self) -> Corpus:
        """Reads the HTML pages of the first source that this machine can get."""
        asset, path = fetch_first(SOURCES)
        logger.info("graft_web reads %s %s (%s)", asset.name, asset.version, asset.licence)
        documents = []
        for name, content in read_members(path, asset.members):
            if not _NO_PROSE.fullmatch(PurePosixPath(name).name):
                page = name.partition("/html/")[2] or name.partition("/doc/")[2]
                documents.append(Document(page, html_text(content.decode("utf-8"))))
        return Corpus(documents, asset.provenance())
