"""A tokenizer's tokens as bytes, as llguidance reads them."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from llguidance import LLTokenizer

from research.text.tokenizer import Tokenizer

# SentencePiece's sign for a space, and how it writes a byte that no piece covers.
_SPACE, _BYTE = "\u2581", re.compile(r"<0x([0-9A-F]{2})>")
# Bytes that no UTF-8 text has.
_NO_TEXT = frozenset({0xC0, 0xC1, *range(0xF5, 0x100)})
# Bytes of which many texts are made, and those within characters; others a vocabulary may lack
# (SmolLM2's lacks \x04), and a row that nothing else is left for fails.
_NEEDED = (ord("\n"), *range(0x20, 0x7F), *range(0x80, 0xC0))
_WORDS = np.dtype("<u4")


class Vocabulary:
    """The tokens of a tokenizer, and which of them end an answer."""

    def __init__(self, tokenizer: Tokenizer, ends: frozenset[int]):
        """`ends`: ids of the tokens that end an answer.

        Raises:
          ValueError: a tokenizer whose tokens do not join to the bytes of the text, or that has
            no token for some byte.
        """
        self.ends, self._tokenizer = ends, tokenizer
        self._newline = tokenizer.encode("\n")
        self.tokens = token_bytes(tokenizer)
        special = tokenizer.special_ids | ends
        text_ids = [id for id, text in enumerate(self.tokens) if text and id not in special]
        # bytes -> the token that is them
        self.ids = {self.tokens[id]: id for id in reversed(text_ids)}
        absent = [byte for byte in _NEEDED if bytes([byte]) not in self.ids]
        if absent:
            raise ValueError(
                f"the tokenizer has no token for {len(absent)} bytes, such as "
                f"{bytes(absent[:4])!r}: an answer could come to where nothing may follow. "
                "Constraints need a byte-level tokenizer, or one with byte fallback"
            )
        self.longest = max(map(len, self.ids))
        # 256 tokens of single bytes; -1 where there is none
        self.byte_ids = [self.ids.get(bytes([byte]), -1) for byte in range(256)]
        # bit masks of the tokens of texts, and of those that end
        self.text_mask, self.end_mask = self.mask(text_ids), self.mask(sorted(ends))
        self.strips_space = _strips_space(tokenizer, self.tokens, text_ids)
        self.trie = LLTokenizer(
            _Tokens(self, special),  # type: ignore[arg-type]  # it asks no more of a wrapper
            n_vocab=len(self.tokens),
            eos_token=sorted(ends),
        )

    @functools.cached_property
    def spaced_ids(self) -> tuple[np.ndarray, np.ndarray]:
        """Tokens with a space in front [n], and the token of each without it [n]."""
        pairs = [
            (id, self.ids[text[1:]])
            for text, id in self.ids.items()
            if text[:1] == b" " and text[1:] in self.ids
        ]
        pairs.sort()
        return tuple(np.asarray(pairs, np.int64).reshape(-1, 2).T)  # type: ignore[return-value]

    @functools.cached_property
    def space_mask(self) -> np.ndarray:
        """Bit mask of the tokens that begin with a space."""
        return self.mask([id for text, id in self.ids.items() if text[:1] == b" "])

    def mask(self, ids: Sequence[int]) -> np.ndarray:
        """[ceil(V/32)] uint32 with the bits of `ids`."""
        bits = np.zeros(-(-len(self.tokens) // 32) * 32, np.uint8)
        bits[list(ids)] = 1
        return np.packbits(bits, bitorder="little").view(_WORDS)

    def encode(self, text: bytes) -> list[int]:
        """Tokens that join to `text`, which may begin or end within a character: those that the
        tokenizer writes it with where it can."""
        try:
            # after a line's end, because SentencePiece puts a space in front of a text
            ids = self._tokenizer.encode("\n" + text.decode())[len(self._newline) :]
        except UnicodeDecodeError:
            return self.split(text)
        return ids if b"".join(self.tokens[id] for id in ids) == text else self.split(text)

    def split(self, text: bytes) -> list[int]:
        """As `encode`, quicker: the longest token first, over and over, up to a byte that has no
        token."""
        ids, start = [], 0
        while start < len(text):
            ends = range(min(self.longest, len(text) - start), 0, -1)
            length = next((n for n in ends if text[start : start + n] in self.ids), 0)
            if not length:
                break
            ids.append(self.ids[text[start : start + length]])
            start += length
        return ids


@functools.lru_cache(maxsize=4)
def find_vocabulary(tokenizer: Tokenizer, ends: frozenset[int]) -> Vocabulary:
    """`Vocabulary`, kept: 262,144 tokens take 3 s."""
    return Vocabulary(tokenizer, ends)


def unpack(mask: np.ndarray) -> np.ndarray:
    """[32 * words] bool of a bit mask [words] uint32."""
    return np.unpackbits(mask.astype(_WORDS).view(np.uint8), bitorder="little").astype(bool)


def token_bytes(tokenizer: Tokenizer) -> list[bytes]:
    """[V] the bytes that each token adds to a text; none for ids without a token.

    Raises:
      ValueError: its decoder does more than to join tokens.
    """
    decoder = json.loads(tokenizer.to_json()).get("decoder")
    kinds = _decoder_kinds(decoder)
    names = {id: name for name, id in tokenizer.tokens().items()}
    added = tokenizer.named_tokens
    if kinds == {"ByteLevel"}:
        characters = {character: byte for byte, character in _byte_characters().items()}

        def read(name: str) -> bytes:
            if name in added:
                return name.encode()
            return bytes(characters[character] for character in name)

    elif kinds and kinds <= {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}:

        def read(name: str) -> bytes:
            if match := _BYTE.fullmatch(name):
                # llguidance marks special tokens with the byte 0xff, which no text has
                return bytes({int(match[1], 16)} - _NO_TEXT)
            return name.replace(_SPACE, " ").encode()

    else:
        raise ValueError(
            f"the tokenizer's decoder ({', '.join(sorted(kinds)) or 'none'}) does not only join "
            "its tokens' bytes: constraints work on byte-level and SentencePiece tokenizers"
        )
    return [read(names[id]) if id in names else b"" for id in range(tokenizer.vocabulary_size)]


def _decoder_kinds(decoder: Any) -> set[str]:
    if decoder is None:
        return set()
    if decoder["type"] == "Sequence":
        return set().union(*map(_decoder_kinds, decoder["decoders"]))
    return {decoder["type"]}


@functools.cache
def _byte_characters() -> dict[int, str]:
    """Byte -> the character that stands for it in a byte-level vocabulary, as in GPT-2."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    table = {byte: chr(byte) for byte in visible}
    return table | {byte: chr(0x100 + number) for number, byte in enumerate(hidden)}


def _strips_space(tokenizer: Tokenizer, tokens: list[bytes], text_ids: list[int]) -> bool:
    """Whether a space with which the first token begins is no part of the text."""
    for id in text_ids:
        text = tokens[id]
        if text[:1] == b" " and text[1:].isalpha():
            return not tokenizer.decode([id]).startswith(" ")
    return False


class _Tokens:
    """What llguidance asks a tokenizer."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary, special: frozenset[int]):
        self.tokens, self.special_token_ids = vocabulary.tokens, sorted(special)
        self.eos_token_id = min(vocabulary.ends)
        self._vocabulary = vocabulary

    def __call__(self, text: str | bytes) -> list[int]:
        # It counts on the bytes being those of the text: no space that SentencePiece puts in front.
        return self._vocabulary.encode(text.encode() if isinstance(text, str) else text)
