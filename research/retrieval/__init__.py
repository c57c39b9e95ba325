"""What a question is answered from: passages or labelled examples, found in an index.

A kind of index is one file here and one line in `KINDS`.
"""

from typing import Any

from research.config.schema import by_kind, one_of
from research.retrieval.base import RetrievalConfig
from research.retrieval.bm25 import Bm25
from research.retrieval.dense import Dense

__all__ = ["KINDS", "AnyRetrieval", "RetrievalConfig"]

KINDS: dict[str, type[RetrievalConfig]] = by_kind(Bm25, Dense)
# One of them, told apart by its `kind`.
AnyRetrieval: Any = one_of(KINDS.values())
