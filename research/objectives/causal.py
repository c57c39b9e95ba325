"""Predict every next token of a document, and where it ends."""

import dataclasses
from typing import Literal

import numpy as np

from research.objectives.base import Examples, Objective, Piece
from research.text.token_table import TokenTable
from research.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Causal(Objective):
    """A document d0 .. dn reads `begin d0 .. dn` and says `d0 .. dn end`; all is trained on.

    A document longer than a row is cut; a later piece starts with the token before its first
    target, not with another begin token, so that each target is trained on exactly once.
    """

    kind: Literal["causal"] = "causal"

    def prepare(self, table: TokenTable, tokenizer: Tokenizer, window: int) -> Examples:
        """Documents of `table`; `window` does not matter, since documents may be split."""
        documents = table["text"]
        lengths = documents.lengths
        begin = np.asarray([tokenizer.begin_id], np.int32)

        def piece(index: int, start: int, stop: int) -> Piece:
            first = documents.offsets[index]
            targets = documents.values[first + start : first + stop].astype(np.int32)
            before = documents.values[first + start - 1 : first + start] if start else begin
            tokens = np.concatenate([before.astype(np.int32), targets[:-1]])
            return Piece(tokens, targets, np.ones(len(targets), np.float32))

        def join(examples: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> Piece:
            first = documents.offsets[examples]
            joined = np.concatenate(documents.stretches(first + starts, first + stops))
            targets = joined.astype(np.int32)
            tokens = np.empty_like(targets)
            tokens[1:] = targets[:-1]
            ends = np.cumsum(stops - starts)
            before = documents.values[np.maximum(first + starts - 1, 0)]
            tokens[ends - (stops - starts)] = np.where(starts > 0, before, tokenizer.begin_id)
            return Piece(tokens, targets, np.ones(len(targets), np.float32))

        return Examples(
            name=table.name,
            lengths=lengths,
            trained=lengths,
            bytes=table.bytes["text"],
            truncated=np.zeros(len(lengths), bool),
            splittable=True,
            piece=piece,
            join=join,
        )
