"""Tokens of a prepared source: read from its records by document, never tokenised again."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np

from research.data.sources.prepared import Prepared
from research.text.token_table import Ragged, TokenTable
from research.text.tokenizer import Tokenizer


class RecordTokens:
    """[T] tokens of all documents of a prepared source, each read from its record on demand.

    Stands where `Ragged` has a flat array: an integer, a slice, or an array of places (not below 0)
    gives what it would give there. The document that was read last is kept, for pieces in a row.
    """

    def __init__(self, source: Prepared, offsets: np.ndarray):
        """`offsets` [N + 1]: where each document's tokens start."""
        self._source = source
        self._offsets = offsets
        self._last: tuple[int, np.ndarray] = (-1, np.zeros(0, source.token_type))
        self.dtype = source.token_type

    def __len__(self) -> int:
        return int(self._offsets[-1])

    def __getitem__(self, places: int | slice | np.ndarray) -> np.ndarray:
        if isinstance(places, slice):
            start, stop, step = places.indices(len(self))
            return self._between(start, max(start, stop))[::step]
        indices = np.asarray(places)
        if not indices.ndim:
            place = range(len(self))[int(indices)]
            return self._between(place, place + 1)[0]
        tokens = np.zeros(indices.shape, self.dtype)
        documents = self._document(indices)
        for document in np.unique(documents):
            here = documents == document
            tokens[here] = self._read(int(document))[indices[here] - self._offsets[document]]
        return tokens

    def stretches(self, starts: np.ndarray, stops: np.ndarray) -> list[np.ndarray]:
        """The tokens start .. stop - 1 of each pair, each in one document, read in one go."""
        documents, which = np.unique(self._document(starts), return_inverse=True)
        records = self._documents(documents.tolist())
        first = self._offsets[documents][which]
        pairs = zip(
            which.tolist(), (starts - first).tolist(), (stops - first).tolist(), strict=True
        )
        return [records[number][start:stop] for number, start, stop in pairs]

    def _document(self, places: np.ndarray | int) -> np.ndarray:
        return np.searchsorted(self._offsets, places, side="right") - 1

    def _between(self, start: int, stop: int) -> np.ndarray:
        if start == stop:
            return np.zeros(0, self.dtype)
        first, last = int(self._document(start)), int(self._document(stop - 1))
        before = int(self._offsets[first])
        if first == last:
            return self._read(first)[start - before : stop - before]
        tokens = np.concatenate(self._documents(range(first, last + 1)))
        return tokens[start - before : stop - before]

    def _documents(self, documents: Sequence[int]) -> list[np.ndarray]:
        """The tokens of some documents.

        Raises:
            ValueError: a document is not as long as the index says.
        """
        records = self._source.tokens(documents)
        for document, tokens in zip(documents, records, strict=True):
            if len(tokens) != self._offsets[document + 1] - self._offsets[document]:
                raise ValueError(
                    f"{self._source.name}, row {document}: {len(tokens)} tokens, but the index "
                    "says another number: run graft prepare again."
                )
        return records

    def _read(self, document: int) -> np.ndarray:
        number, tokens = self._last
        if number != document:
            (tokens,) = self._documents([document])
            self._last = number, tokens = document, tokens
        return tokens


@dataclasses.dataclass(frozen=True)
class PreparedTokens(Ragged):
    """The documents of a prepared source; their `values` are `RecordTokens`."""

    def stretches(self, starts: np.ndarray, stops: np.ndarray) -> list[np.ndarray]:
        """As in `Ragged`, with the documents read in one go."""
        return cast(RecordTokens, self.values).stretches(starts, stops)


def read_prepared(source: Prepared, tokenizer: Tokenizer, fields: Mapping[str, bool]) -> TokenTable:
    """The tokens of a prepared source as they are; memory: 16 bytes a document.

    Args:
      source: documents.
      tokenizer: the model's.
      fields: as for `tokenize`.

    Raises:
        ValueError: the tokens are another tokenizer's, or the objective reads more than documents.
    """
    if dict(fields) != {"text": True}:
        raise ValueError(
            f"Source {source.name!r} is prepared: it has documents that end with end-of-text, not "
            f"the fields {sorted(fields)}. Train on the labelled records themselves."
        )
    if source.tokenizer != tokenizer.fingerprint():
        raise ValueError(
            f"Source {source.name!r} was prepared with another tokenizer "
            f"({source.tokenizer[:16]}) than the model's ({tokenizer.fingerprint()[:16]}): its "
            "tokens would be other words. Prepare it again with the model's tokenizer."
        )
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(source.lengths)])
    tokens = PreparedTokens(cast(np.ndarray, RecordTokens(source, offsets)), offsets)
    return TokenTable(source.name, {"text": tokens}, {"text": source.byte_lengths})
