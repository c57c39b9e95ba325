"""Tokens of a source's examples, field by field, and the encoders that make them."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from research.text.record_shapes import explain_missing
from research.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Ragged:
    """Sequences of different lengths in one flat array: `values [T]`, `offsets [N + 1]`."""

    values: np.ndarray
    offsets: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """[N] int64."""
        return np.diff(self.offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        return self.values[self.offsets[index] : self.offsets[index + 1]]

    def stretches(self, starts: np.ndarray, stops: np.ndarray) -> list[np.ndarray]:
        """`values[start:stop]` for each pair, none beyond its document."""
        pairs = zip(starts.tolist(), stops.tolist(), strict=True)
        return [self.values[start:stop] for start, stop in pairs]


@dataclasses.dataclass(frozen=True)
class TokenTable:
    """The tokens of every example of a source, by field."""

    name: str
    # Field -> its tokens; fields that are trained on end with end-of-text.
    tokens: Mapping[str, Ragged]
    # Field -> [N] int64 UTF-8 bytes of the text of each example.
    bytes: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        return len(next(iter(self.bytes.values())))

    def __getitem__(self, field: str) -> Ragged:
        return self.tokens[field]


@dataclasses.dataclass(frozen=True)
class Encoded:
    """One field of a run of examples."""

    # Its token ids (or numbers of another meaning), for each example.
    values: Sequence[Sequence[int]]
    # The UTF-8 bytes of its text.
    bytes: Sequence[int]


class Encoder(Protocol):
    """Turns examples into arrays, many at once: what `add` took is what `take` returns."""

    @property
    def key(self) -> Mapping[str, Any]:
        """What the arrays depend on beside the source, as JSON."""
        ...

    @property
    def types(self) -> Mapping[str, np.dtype]:
        """Field -> type of its values."""
        ...

    def add(self, example: Mapping[str, Any], where: str) -> int:
        """Takes an example; returns its characters. ValueError says `where` it is."""
        ...

    def take(self) -> Mapping[str, Encoded]:
        """Every field of the examples that were added since the last call."""
        ...


class TextEncoder:
    """Tokens of text fields, each tokenised apart."""

    def __init__(self, tokenizer: Tokenizer, fields: Mapping[str, bool]):
        """`fields`: field -> whether end-of-text is appended to it."""
        self._tokenizer = tokenizer
        self._ends = dict(fields)
        self._texts: dict[str, list[str]] = {field: [] for field in fields}
        names = sorted(fields)
        self.types = dict.fromkeys(names, tokenizer.token_type)
        self.key = {
            "tokenizer": tokenizer.fingerprint(),
            "fields": {name: bool(fields[name]) for name in names},
        }

    def add(self, example: Mapping[str, Any], where: str) -> int:
        """Takes the text of every field."""
        texts = [(field, field_text(example, field, where)) for field in self._texts]
        for field, text in texts:
            self._texts[field].append(text)
        return sum(len(text) for _, text in texts)

    def take(self) -> dict[str, Encoded]:
        """The tokens of what was added."""
        result = {}
        for field, texts in self._texts.items():
            try:
                encoded = self._tokenizer.encode_batch(texts)
            except ValueError as error:
                raise ValueError(f"field {field!r}: {error}") from error
            if self._ends[field]:
                for ids in encoded:
                    ids.append(self._tokenizer.end_id)
            sizes = [len(text.encode("utf-8", "surrogatepass")) for text in texts]
            result[field] = Encoded(encoded, sizes)
            texts.clear()
        return result


def field_text(example: Mapping[str, Any], field: str, where: str) -> str:
    """The text of one field; ValueError says `where` there is none, and what there is."""
    if field not in example:
        if isinstance(example.get("messages"), list):
            advice = 'These are messages: use data.objective.kind="chat".'
        else:
            advice = explain_missing(example, field)
        raise ValueError(f"{where}: there is no field {field!r}, only {sorted(example)}. {advice}")
    if not isinstance(example[field], str):
        advice = ""
        if isinstance(example.get("messages"), list):
            advice = ' These are messages: use data.objective.kind="chat".'
        raise ValueError(
            f"{where}: field {field!r} must be text, not {type(example[field]).__name__}.{advice}"
        )
    return example[field]
