"""The causal objective: every target once, none forged at a cut."""

import numpy as np
import pytest

from research.objectives.causal import Causal
from research.text import tokenizer as tokenizer_lib
from research.text.token_table import Ragged, TokenTable


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizer_lib.train(["some words"], 259)


def _table(documents):
    lengths = [len(document) for document in documents]
    values = np.concatenate([np.asarray(d, np.uint16) for d in documents])
    tokens = {"text": Ragged(values, np.concatenate([[0], np.cumsum(lengths)]))}
    return TokenTable("made", tokens, {"text": np.asarray(lengths) - 1})


def test_a_document_is_begun_ended_and_trained_on_whole(tokenizer):
    end = tokenizer.end_id
    examples = Causal().prepare(_table([[7, end], [10, 11, 12, end]]), tokenizer, 8)
    assert examples.lengths.tolist() == examples.trained.tolist() == [2, 4]
    piece = examples.piece(1, 0, 4)
    assert piece.tokens.tolist() == [tokenizer.begin_id, 10, 11, 12]
    assert piece.targets.tolist() == [10, 11, 12, end]
    assert piece.weights.tolist() == [1, 1, 1, 1] and piece.prefix is None
    assert piece.tokens.dtype == piece.targets.dtype == np.int32


def test_pieces_of_a_document_join_to_the_whole(tokenizer):
    document = [*range(10, 30), tokenizer.end_id]
    piece = Causal().prepare(_table([[5, tokenizer.end_id], document]), tokenizer, 8).piece
    whole = piece(1, 0, 21)
    for cut in range(1, 21):
        parts = piece(1, 0, cut), piece(1, cut, 21)
        for field in ("tokens", "targets", "weights"):
            joined = np.concatenate([getattr(part, field) for part in parts])
            assert np.array_equal(joined, getattr(whole, field))
