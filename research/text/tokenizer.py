"""Byte-level BPE on the `tokenizers` library: every text round-trips exactly.

The file format is the library's own JSON, so that a tokenizer of another project loads as well.
"""

import functools
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from research.runtime import files, storage
from research.text import tokenizer_checks

PAD, BEGIN, END = "<|pad|>", "<|begin|>", "<|end|>"
# SentencePiece's sign for a space, and how it writes a byte that no piece covers.
_SPACE, _BYTE = "\u2581", re.compile(r"<0x[0-9A-F]{2}>")


class Tokenizer:
    """A `tokenizers.Tokenizer` whose roles (begin, end, padding) are known.

    Text is only text: a document in which `<|end|>` is written out gets the tokens of those seven
    characters, never the special token, so no document can forge a boundary. Only text written
    by the experimenter (a prompt template) is encoded with `special=True`.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        begin: str = BEGIN,
        end: str = END,
        pad: str = PAD,
        opens: bool = True,
    ):
        """Wraps `backend`; `begin`, `end` and `pad` are the names of its special tokens, and
        `opens` says whether a text that is not trained on starts with `begin`.

        Raises:
            ValueError: one of the names is not in the vocabulary.
        """
        ids: list[int] = []
        for role, name in (("begin", begin), ("end", end), ("pad", pad)):
            token = backend.token_to_id(name)
            if token is None:
                special = [str(t.content) for t in backend.get_added_tokens_decoder().values()]
                raise ValueError(
                    f"The tokenizer has no token {name!r} for the role {role!r}. "
                    f"Its special tokens are {special[:20]}; pass one of them as {role}=."
                )
            ids.append(token)
        # A file may carry what would silently change documents, and cut each at random (dropout).
        switches = {
            "truncation": backend.truncation,
            "padding": backend.padding,
            "dropout": getattr(backend.model, "dropout", None),
        }
        if switches["dropout"] is not None:
            backend.model.dropout = None
        # What is read otherwise than its file says.
        self.notes: tuple[str, ...] = tuple(
            f"the tokenizer's {name} ({value}): switched off, every text has all its tokens, and "
            "always the same ones"
            for name, value in switches.items()
            if value
        )
        backend.no_truncation()
        backend.no_padding()
        self.roles: dict[str, Any] = {"begin": begin, "end": end, "pad": pad, "opens": opens}
        self._special = tokenizers.Tokenizer.from_str(backend.to_str())
        self._special.encode_special_tokens = False
        self._plain = tokenizers.Tokenizer.from_str(backend.to_str())
        self._plain.encode_special_tokens = True
        self.begin_id, self.end_id, self.pad_id = ids
        added = backend.get_added_tokens_decoder().values()
        # Every token that has a name of its own in a template, and which of them no text can spell.
        self.named_tokens: frozenset[str] = frozenset(str(token.content) for token in added)
        self.special: frozenset[str] = frozenset(str(t.content) for t in added if t.special)
        # How a conversation is written for the model of this tokenizer, if its makers say so.
        self.chat_template: str | None = None
        # The same with tools, where they have one of its own.
        self.tool_template: str | None = None
        # Special tokens by the names that templates know them by; a model's files may name fewer.
        self.template_tokens: dict[str, str] = self.role_tokens
        # The largest id counts: a vocabulary may have holes.
        self.vocabulary_size: int = max(backend.get_vocab(with_added_tokens=True).values()) + 1

    @property
    def role_tokens(self) -> dict[str, str]:
        """The tokens of the roles, by the names that templates know such tokens by."""
        names = {"bos_token": "begin", "eos_token": "end", "pad_token": "pad"}
        return {name: self.roles[role] for name, role in names.items()}

    @property
    def templates(self) -> tuple[str | None, str | None]:
        """How conversations without and with tools are written."""
        return self.chat_template, self.tool_template

    @functools.cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids that no text is tokenized to."""
        added = self._plain.get_added_tokens_decoder()
        return frozenset(id for id, token in added.items() if token.special)

    @functools.cached_property
    def text_ids(self) -> np.ndarray:
        """All other ids of the vocabulary, in order; it may have holes."""
        known = self._plain.get_vocab(with_added_tokens=True).values()
        return np.asarray(sorted(set(known) - self.special_ids), np.int32)

    @functools.cached_property
    def byte_lengths(self) -> np.ndarray:
        """[V] int32 UTF-8 bytes that each token adds to a text; special tokens add none.

        For byte-level and SentencePiece vocabularies, where a text's tokens join to its bytes.
        """
        added = self._plain.get_added_tokens_decoder()
        # In a byte-level vocabulary each character of a token's name stands for one byte.
        byte_level = '"ByteLevel"' in json.dumps(json.loads(self.to_json())["decoder"])
        lengths = np.zeros(self.vocabulary_size, np.int32)
        for id in self.text_ids.tolist():
            name = str(self._plain.id_to_token(id))
            if id in added:
                lengths[id] = len(name.encode())
            elif byte_level:
                lengths[id] = len(name)
            elif _BYTE.fullmatch(name):
                lengths[id] = 1
            else:
                lengths[id] = len(name.replace(_SPACE, " ").encode())
        return lengths

    def tokens(self) -> dict[str, int]:
        """The id of every token, by name."""
        return self._plain.get_vocab(with_added_tokens=True)

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Token ids of `text`; names of special tokens in it are honoured only if `special`.

        Raises:
            ValueError: it has a lone surrogate and so is no Unicode text.
        """
        backend = self._special if special else self._plain
        try:
            return backend.encode(text, add_special_tokens=False).ids
        except TypeError:
            if not isinstance(text, str):
                raise
            raise ValueError(f"{text!r:.60} is no Unicode text") from None

    def encode_batch(self, texts: Sequence[str], *, special: bool = False) -> list[list[int]]:
        """Token ids of every text as `encode` gives them, in parallel.

        Raises:
            ValueError: a text has a lone surrogate and so is no Unicode text.
        """
        backend = self._special if special else self._plain
        try:
            encodings = backend.encode_batch_fast(list(texts), add_special_tokens=False)
        except (TypeError, UnicodeEncodeError) as error:
            for i, text in enumerate(texts):
                try:
                    text.encode()
                except (UnicodeEncodeError, AttributeError) as cause:
                    raise ValueError(f"Text {i} of the batch is no Unicode text: {cause}") from None
            raise error
        return [encoding.ids for encoding in encodings]

    def spans(self, texts: Sequence[str]) -> list[np.ndarray]:
        """[n,2] first character of each of a text's n tokens and the one after its last, of every
        text; tokens that share a character each have the whole of it."""
        encodings = self._plain.encode_batch(list(texts), add_special_tokens=False)
        return [np.asarray(each.offsets, np.int64).reshape(-1, 2) for each in encodings]

    @functools.cached_property
    def opens_with_space(self) -> bool:
        """Whether a text's first token has a space that the text has not, as SentencePiece's do."""
        ids, newline_ids = self.encode("\nx"), self.encode("\n")
        size = len(newline_ids)
        return ids[:size] == newline_ids and ids[size:] != self.encode("x")

    def decode(self, ids: Sequence[int] | np.ndarray, *, special: bool = False) -> str:
        """The text of `ids`; special tokens are written out only if `special`."""
        return self._plain.decode([int(i) for i in ids], skip_special_tokens=not special)

    def stream(
        self,
        ids: Iterable[int],
        *,
        special: bool = False,
        names: Mapping[int, str] | None = None,
    ) -> Iterator[str]:
        """Yields text as ids arrive, never half a character; the parts join to `decode(ids)`, with
        the special tokens of `names` (id -> name) written out where they stand."""
        text = TextStream(self, special=special, names=names)
        for token in ids:
            if part := text.add(token):
                yield part
        if rest := text.finish():
            yield rest

    def fingerprint(self) -> str:
        """sha256 of the canonical JSON and the roles, hexadecimal."""
        content = {"tokenizer": json.loads(self._special.to_str()), "roles": self.roles}
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(canonical.encode()).hexdigest()

    @property
    def token_type(self) -> np.dtype:
        """The smallest type that holds every token."""
        return np.dtype(np.uint16 if self.vocabulary_size <= 2**16 else np.uint32)

    @property
    def opening(self) -> list[int]:
        """What a bare prompt starts with."""
        return [self.begin_id] if self.roles["opens"] else []

    def to_json(self) -> str:
        """The `tokenizers` JSON, as structured generation and other libraries read it."""
        return self._special.to_str()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the `tokenizers` JSON to `path`, whole or not at all."""
        files.atomic_write(path, self.to_json())


class TextStream:
    """The text of tokens that come one by one; the parts join to `Tokenizer.decode` of them, with
    the special tokens of `names` (id -> name) written out where they stand."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        special: bool = False,
        names: Mapping[int, str] | None = None,
    ):
        self._tokenizer, self._special, self._names = tokenizer, special, names or {}
        self._state = decoders.DecodeStream(skip_special_tokens=not special)
        self._ids: list[int] = []
        self._characters = 0

    def add(self, id: int) -> str:
        """What a token adds to the text: nothing while it ends within a character."""
        self._ids.append(int(id))
        part = self._state.step(self._tokenizer._plain, self._ids[-1]) or ""
        self._characters += len(part)
        return part + self._names.get(self._ids[-1], "")

    def finish(self) -> str:
        """What is left: an unfinished character, shown as U+FFFD, as `decode` does."""
        return self._tokenizer.decode(self._ids, special=self._special)[self._characters :]


def load(
    path: str | os.PathLike[str], *, begin: str = BEGIN, end: str = END, pad: str = PAD
) -> Tokenizer:
    """Reads a `tokenizers` JSON; the names of its special tokens may differ from ours.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no tokenizer, says two things, or has no such special token.
    """
    file = storage.absolute(path)
    if not storage.is_file(file):
        raise FileNotFoundError(f"There is no tokenizer at {os.fspath(path)}.")
    with storage.storage_errors(file):
        text = file.read_bytes().decode()
    tokenizer = from_json(text, os.fspath(path), begin=begin, end=end, pad=pad)
    tokenizer_checks.check(text, tokenizer.tokens(), os.fspath(path))
    return tokenizer


def from_json(text: str, where: str, **roles: Any) -> Tokenizer:
    """A tokenizer from its JSON and `Tokenizer.roles`; `where` it comes from is said in errors.

    Raises:
        ValueError: the text is no tokenizer, or has no such special token.
    """
    try:
        return Tokenizer(tokenizers.Tokenizer.from_str(text), **roles)
    except ValueError:
        raise
    except Exception as error:  # The library raises bare Exception, also where a copy is made.
        raise ValueError(f"{where} is no tokenizer JSON: {error}") from error


def train(texts: Iterable[str], vocabulary_size: int) -> Tokenizer:
    """Trains byte-level BPE (Sennrich et al. 2016; bytes as in GPT-2) on `texts`.

    Deterministic: the same texts in any order give the same tokenizer. The vocabulary is smaller
    than asked for when the texts have no more pairs that occur twice.

    Raises:
        ValueError: no text, or `vocabulary_size` leaves no room for the 256 bytes.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = [PAD, BEGIN, END]
    least = len(alphabet) + len(special)
    if vocabulary_size < least:
        raise ValueError(
            f"vocabulary_size={vocabulary_size} is too small: "
            f"{len(alphabet)} bytes and {len(special)} special tokens need {least}."
        )
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        min_frequency=2,
        special_tokens=special,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    characters = 0

    def count_characters() -> Iterator[str]:
        nonlocal characters
        for text in texts:
            characters += len(text)
            yield text

    backend.train_from_iterator(count_characters(), trainer)
    if not characters:
        raise ValueError("There is no text to train a tokenizer on: the corpus is empty.")
    return Tokenizer(backend)
