"""Windows hold every token once, know their bytes, and chance has no state."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from research.objectives import windows as windows_lib
from research.objectives.windows import Windows, uniform
from tests.objectives import cases


@given(cases.TEXTS, st.integers(1, 40))
@settings(max_examples=60)
def test_windows_hold_every_token_once_and_begin_only_where_documents_do(texts, limit):
    tokenizer = cases.tokenizer()
    documents = cases.table(texts, tokenizer)["text"]
    windows = Windows.cut(documents, limit)
    assert windows.lengths.max() <= limit and windows.lengths.min() >= 1
    pieces = [windows.next_tokens(i, tokenizer.begin_id) for i in range(len(windows))]
    assert np.array_equal(np.concatenate([p.targets for p in pieces]), documents.values)
    for i, piece in enumerate(pieces):
        text = windows.text(i)
        assert len(text) == windows.text_lengths[i]
        ends = piece.targets[-1] == tokenizer.end_id
        assert piece.targets[: len(piece.targets) - ends].tolist() == text.tolist()
        opens = i == 0 or windows.rows[i] != windows.rows[i - 1]
        before = tokenizer.begin_id if opens else pieces[i - 1].targets[-1]
        assert piece.tokens.tolist() == [before, *piece.targets[:-1]]


@given(cases.TEXTS, st.integers(1, 40), st.integers(0, 9), st.booleans())
def test_bytes_of_windows_are_those_of_their_tokens(texts, limit, seed, space):
    tokenizer = cases.tokenizer()
    table = cases.table(texts, tokenizer)
    windows = Windows.cut(table["text"], limit)
    totals, lengths = table.bytes["text"], tokenizer.byte_lengths
    skipped = np.random.default_rng(seed).integers(0, windows.lengths)
    if space:  # as if the first token of every text held a space that the text has not
        totals = totals - 1
    window_bytes = windows.text_bytes(totals, lengths, skipped)
    for i in range(len(windows)):
        whole = windows.next_tokens(i, tokenizer.begin_id).targets
        first = windows.starts[i] == table["text"].offsets[windows.rows[i]]
        assert window_bytes[i] == lengths[whole[skipped[i] :]].sum() - (
            space and first and not skipped[i]
        )
    whole = windows.text_bytes(totals, lengths, np.zeros(len(windows), np.int64))
    assert np.array_equal(np.bincount(windows.rows, whole), totals)


def test_bytes_are_the_same_however_many_tokens_are_looked_up_at_once(monkeypatch):
    tokenizer = cases.tokenizer()
    table = cases.table(["some words " * 20, "", "are"], tokenizer)
    windows = Windows.cut(table["text"], 7)
    skipped = windows.lengths // 2
    expected = windows.text_bytes(table.bytes["text"], tokenizer.byte_lengths, skipped)
    monkeypatch.setattr(windows_lib, "_CHUNK", 5)
    window_bytes = windows.text_bytes(table.bytes["text"], tokenizer.byte_lengths, skipped)
    assert np.array_equal(window_bytes, expected)


def test_chance_depends_on_seed_example_and_draw_alone():
    examples, draws = np.arange(300)[:, None], np.arange(200)
    numbers = uniform(3, examples, draws)
    assert numbers.shape == (300, 200) and numbers.min() >= 0 and numbers.max() < 1
    assert len(np.unique(numbers)) == numbers.size
    assert uniform(3, 17, 5) == numbers[17, 5] == uniform(3, 17, draws)[5]
    # even in both directions, and not alike between neighbours or seeds
    assert abs(numbers.mean() - 0.5) < 0.005
    assert np.histogram(numbers, 10, (0, 1))[0].std() < 0.02 * numbers.size / 10
    for other in (numbers[1:], uniform(4, examples, draws)[:-1]):
        assert abs(np.corrcoef(numbers[:-1].ravel(), other.ravel())[0, 1]) < 0.02
    assert 0 <= float(uniform(-1, 0, 0)) < 1
    # pinned: runs that resume must read what they would have read
    assert float(uniform(0, 1, 2)).hex() == "0x1.bdcc0eb431558p-2"
