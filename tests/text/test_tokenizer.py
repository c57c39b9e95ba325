"""Byte-level BPE: any text comes back exactly, and no text can forge a special token."""

import json

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers

from research.text import tokenizer as tokenizer_lib
from research.text.tokenizer import BEGIN, END, PAD, Tokenizer

TEXTS = [
    "def add(a, b):\n    return a + b\n" * 5,
    "It was the best of times, it was the worst of times. 😀 Größe\n" * 5,
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return tokenizer_lib.train(TEXTS, 400)


TEXT = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"])),
    st.sampled_from([END, f"a{BEGIN}b{END}{PAD}", "\x00\r\n\t \ufffd", "e\u0301 \u00e9", "👩‍👩‍👧"]),
)


@given(TEXT)
@settings(max_examples=100, deadline=None)
def test_any_text_round_trips_exactly_and_never_becomes_a_special_token(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not {tokenizer.pad_id, tokenizer.begin_id, tokenizer.end_id} & set(ids)
    assert tokenizer.encode_batch([text, "x"])[0] == ids


def test_only_the_experimenters_text_may_name_special_tokens(tokenizer):
    assert tokenizer.encode(f"{BEGIN}a", special=True)[0] == tokenizer.begin_id
    ids = [tokenizer.begin_id, *tokenizer.encode("a b"), tokenizer.end_id]
    assert tokenizer.decode(ids) == "a b"
    assert tokenizer.decode(ids, special=True) == f"{BEGIN}a b{END}"


@given(TEXT)
def test_the_bytes_of_tokens_add_up_to_those_of_the_text(tokenizer, text):
    ids = [tokenizer.begin_id, *tokenizer.encode(text), tokenizer.end_id]
    assert tokenizer.byte_lengths[ids].sum() == len(text.encode())


def test_sentencepiece_tokens_know_their_bytes_and_holes_are_no_tokens():
    names = [PAD, BEGIN, END, "\u2581", "a", "\u2581a", "\u2581\u2581", *_byte_tokens()]
    vocabulary = {name: id + (id > 4) for id, name in enumerate(names)}
    model = models.BPE(vocabulary, [("\u2581", "a"), ("\u2581", "\u2581")], byte_fallback=True)
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = normalizers.Replace(" ", "\u2581")
    backend.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback()])
    backend.add_special_tokens([PAD, BEGIN, END])
    wrapped = Tokenizer(backend)
    for text in ("a a   a", "aé a", "😀"):
        assert wrapped.byte_lengths[wrapped.encode(text)].sum() == len(text.encode())
    assert wrapped.special_ids == {0, 1, 2}
    assert wrapped.text_ids.tolist() == [3, 4, *range(6, wrapped.vocabulary_size)]


def _byte_tokens():
    return [f"<0x{byte:02X}>" for byte in range(256)]


def test_special_tokens_come_first_and_all_bytes_are_in_the_vocabulary(tokenizer):
    assert (tokenizer.pad_id, tokenizer.begin_id, tokenizer.end_id) == (0, 1, 2)
    assert 259 < tokenizer.vocabulary_size <= 400
    with pytest.raises(ValueError, match="256 bytes and 3 special tokens need 259"):
        tokenizer_lib.train(TEXTS, 258)


def test_training_twice_gives_the_same_tokenizer_in_any_order_of_texts(tokenizer):
    again = tokenizer_lib.train(reversed(TEXTS), 400)
    assert again.fingerprint() == tokenizer.fingerprint()
    assert tokenizer_lib.train(TEXTS, 300).fingerprint() != tokenizer.fingerprint()


def test_a_saved_tokenizer_loads_the_same(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "deep" / "tokenizer.json")
    loaded = tokenizer_lib.load(tmp_path / "deep" / "tokenizer.json")
    assert loaded.fingerprint() == tokenizer.fingerprint()
    assert loaded.encode(TEXTS[1] + END) == tokenizer.encode(TEXTS[1] + END)
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["tokenizer.json"]


@given(st.lists(st.integers(0, 399), max_size=40))
@settings(max_examples=100, deadline=None)
def test_streamed_text_joins_to_the_decoded_text_even_for_broken_characters(tokenizer, ids):
    ids = [i % tokenizer.vocabulary_size for i in ids]
    assert "".join(tokenizer.stream(ids)) == tokenizer.decode(ids)


def test_streaming_never_shows_half_a_character(tokenizer):
    ids = tokenizer.encode("a 🦎 b")
    assert "\ufffd" in tokenizer.decode(ids[:2])  # The animal is several tokens.
    assert "\ufffd" not in "".join(tokenizer.stream(ids))
    assert any("🦎" in part for part in tokenizer.stream(ids))


def test_truncation_and_padding_of_a_foreign_file_are_switched_off(tmp_path):
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.add_special_tokens(["<s>", "</s>"])
    backend.add_tokens(["a"])
    backend.enable_truncation(2)
    backend.enable_padding(length=9)
    backend.save(str(tmp_path / "foreign.json"))
    roles = {"begin": "<s>", "end": "</s>", "pad": "</s>"}
    loaded = tokenizer_lib.load(tmp_path / "foreign.json", **roles)
    assert np.array_equal(loaded.encode("aaaa"), [2, 2, 2, 2])
    with pytest.raises(ValueError, match=r"no token '<\|begin\|>'.*'<s>'"):
        tokenizer_lib.load(tmp_path / "foreign.json")


def test_bad_input_says_what_is_wrong(tokenizer, tmp_path):
    with pytest.raises(ValueError, match="corpus is empty"):
        tokenizer_lib.train([], 300)
    with pytest.raises(FileNotFoundError, match="no tokenizer at"):
        tokenizer_lib.load(tmp_path / "none.json")
    (tmp_path / "torn.json").write_text('{"version": "1.0", "model"')
    with pytest.raises(ValueError, match="torn.json is no tokenizer JSON"):
        tokenizer_lib.load(tmp_path / "torn.json")
    content = json.loads(tokenizer.to_json())
    left, right = content["model"]["merges"][-1]
    del content["model"]["vocab"][left + right]  # which a merge makes
    (tmp_path / "less.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="less.json is no tokenizer JSON"):
        tokenizer_lib.load(tmp_path / "less.json")
    with pytest.raises(ValueError, match="Text 1 of the batch is no Unicode text"):
        tokenizer.encode_batch(["fine", "\ud800"])


def test_a_tokenizer_that_opens_texts_with_a_space_is_known():
    """SentencePiece's does, byte-level BPE does not."""
    pieces = {"<s>": 0, "\u2581": 1, "x": 2, "\n": 3, "\u2581x": 4}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(pieces, [("\u2581", "x")]))
    backend.normalizer = tokenizers.normalizers.Prepend("\u2581")
    spacing = tokenizer_lib.Tokenizer(backend, begin="<s>", end="<s>", pad="<s>")
    assert spacing.opens_with_space and spacing.encode("x") == [4]
    assert not tokenizer_lib.train(["some words"], 270).opens_with_space


def test_text_that_is_none_is_named():
    tokenizer = tokenizer_lib.train(["some words"] * 3, 300)
    with pytest.raises(ValueError, match=r"'a\\ud800' is no Unicode text"):
        tokenizer.encode("a\ud800")
