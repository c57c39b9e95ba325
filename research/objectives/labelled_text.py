"""What objectives of a whole text share: it has a label, which a head says at its last token."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np

from research.objectives.base import Examples, Objective, Piece, name_rows, only_text
from research.text.conversation import Conversation
from research.text.record_shapes import explain_missing
from research.text.token_table import Encoded, Encoder, TextEncoder, TokenTable, field_text
from research.text.tokenizer import Tokenizer

_SLOT = "{text}"
# Where a record has its label: beside a prompt, or beside a text.
_LABELS = ("completion", "label")


@dataclasses.dataclass(frozen=True)
class LabelledText(Objective):
    """An example reads `opening head text tail`, and its last token's target is the label.

    Nothing stands in front but what the tokenizer itself puts there, so that a head which is served
    elsewhere reads the same tokens. Documents of a row see nothing of each other.
    """

    # Text around the text, with `{text}` once. Names of special tokens in it are honoured.
    template: str = _SLOT
    # Which side of a text that is too long is removed; the template stays.
    cut: Literal["left", "right"] = "right"

    # Prepared sources, which have no labels, are refused.
    fields: ClassVar[Mapping[str, bool]] = {"text": False, "label": False}
    generates: ClassVar[bool] = False
    # The type of labels in a table of tokens.
    label_type: ClassVar[type]

    def __post_init__(self) -> None:
        if self.template.count(_SLOT) != 1:
            raise ValueError(
                f"The template must hold {_SLOT} exactly once, not "
                f"{self.template.count(_SLOT)} times: {self.template!r}."
            )

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of classes; none where labels are numbers."""
        return ()

    def read_label(self, value: Any) -> float:
        """The class's number, or the number.

        Raises:
          ValueError: what is wrong with it.
        """
        raise NotImplementedError

    def label_of(self, record: Mapping[str, Any], where: str) -> float:
        """The label of a record.

        Raises:
          ValueError: says `where` there is none, or what is wrong with it.
        """
        names = [name for name in _LABELS if record.get(name) is not None]
        if not names:
            raise ValueError(
                f"{where}: there is no label, neither 'label' nor 'completion', only "
                f"{sorted(record)}: name the field in the source's `fields`, such as "
                "fields={'label': 'stars'}"
            )
        try:
            return self.read_label(record[names[0]])
        except ValueError as error:
            raise ValueError(f"{where}: field {names[0]!r}: {error}") from None

    @property
    def texts_key(self) -> Any:
        return ["labelled text"]

    def texts(self, example: Mapping[str, Any], where: str) -> list[str]:
        """The text alone: one that has another label elsewhere is the same text."""
        if "prompt" not in example and "text" not in example:
            advice = explain_missing(example, "text")
            raise ValueError(f"{where}: there is no text, only {sorted(example)}. {advice}")
        return [field_text(example, "prompt" if "prompt" in example else "text", where)]

    def encoder(self, tokenizer: Tokenizer, window: int) -> Encoder:
        return _LabelEncoder(self, tokenizer)

    def fixed(self, tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
        """Token ids in front of a text, and behind it."""
        head, tail = self.template.split(_SLOT)
        front = [*tokenizer.opening, *tokenizer.encode(head, special=True)]
        return front, tokenizer.encode(tail, special=True)

    def prompt_ids(
        self, tokenizer: Tokenizer, conversation: Conversation, window: int
    ) -> tuple[list[int], bool]:
        """A text as it is read in training; the label follows from its last token."""
        head, tail = self.fixed(tokenizer)
        ids = tokenizer.encode(only_text(conversation))
        if not (head or ids or tail):
            raise ValueError("the text is empty, and this model has no token to begin with")
        start, stop = self._fit(len(ids), self._space(tokenizer, window))
        return [*head, *ids[start:stop], *tail], stop - start < len(ids)

    def _space(self, tokenizer: Tokenizer, window: int) -> int:
        """Tokens of a text that have place in a window.

        Raises:
          ValueError: none has.
        """
        size = sum(map(len, self.fixed(tokenizer)))
        if size >= window:
            raise ValueError(
                f"A window of {window} tokens has no room for a text beside the template, which "
                f"has {size}: use a longer sequence_length."
            )
        return window - size

    def _fit(self, length: int, space: int) -> tuple[int, int]:
        count = min(length, space)
        return (length - count, length) if self.cut == "left" else (0, count)

    def prepare(self, table: TokenTable, tokenizer: Tokenizer, window: int) -> Examples:
        """Labelled texts of `table`, cut to `window` tokens.

        Raises:
          ValueError: a text that is empty, where nothing stands around it (names the rows), or a
            window that the template fills.
        """
        texts, labels = table["text"], table["label"].values
        head, tail = (np.asarray(part, np.int32) for part in self.fixed(tokenizer))
        text_lengths = np.minimum(texts.lengths, self._space(tokenizer, window))
        lengths = len(head) + text_lengths + len(tail)
        if empty := np.flatnonzero(lengths == 0).tolist():
            raise ValueError(
                f"{table.name}, {name_rows(np.asarray(empty))}: an empty text has no last token "
                "that could say its label. Remove such rows, or give a template."
            )

        def piece(index: int, start: int, stop: int) -> Piece:
            text = texts[index].astype(np.int32)
            first, last = self._fit(len(text), int(text_lengths[index]))
            ids = np.concatenate([head, text[first:last], tail])
            weights, targets = np.zeros(len(ids), np.float32), np.zeros(len(ids), np.int32)
            weights[-1] = 1.0
            values = None
            if self.classes:
                targets[-1] = labels[index]
            else:
                values = np.zeros(len(ids), np.float32)
                values[-1] = labels[index]
            return Piece(ids, targets, weights, values=values).between(start, stop)

        return Examples(
            name=table.name,
            lengths=lengths,
            trained=np.ones(len(lengths), np.int64),
            bytes=None,  # nats of a label are no code for a text
            truncated=text_lengths < texts.lengths,
            splittable=False,
            piece=piece,
            ends=False,
            labels=np.asarray(labels),
            classes=self.classes,
            note=self.describe(np.asarray(labels)),
        )

    def describe(self, labels: np.ndarray) -> str:
        """What a plan says of the labels [N] of a source."""
        raise NotImplementedError


class _LabelEncoder:
    """The tokens of texts, and their labels."""

    def __init__(self, objective: LabelledText, tokenizer: Tokenizer):
        self._objective = objective
        self._texts = TextEncoder(tokenizer, {"text": False})
        self._labels: list[Sequence[float]] = []
        self.types = {**self._texts.types, "label": np.dtype(objective.label_type)}
        self.key = {**self._texts.key, "labels": [objective.kind, *objective.classes]}

    def add(self, example: Mapping[str, Any], where: str) -> int:
        (text,) = self._objective.texts(example, where)
        label = self._objective.label_of(example, where)
        characters = self._texts.add({"text": text}, where)
        self._labels.append([label])
        return characters

    def take(self) -> dict[str, Encoded]:
        labels, self._labels = self._labels, []
        return {**self._texts.take(), "label": Encoded(labels, [0] * len(labels))}  # type: ignore[arg-type]
