"""What an objective gives to packing: the length of every example, and any stretch of it.

A new objective is one file and one line in `research.objectives.OBJECTIVES`.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, cast

import numpy as np

from research.text.conversation import Conversation
from research.text.conversation_writer import Writer
from research.text.token_table import Encoder, TextEncoder, TokenTable, field_text
from research.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Piece:
    """n consecutive tokens of one example, not yet placed in a row."""

    tokens: np.ndarray  # [n] int32
    targets: np.ndarray  # [n] int32, what place i says: mostly what follows `tokens[i]`
    weights: np.ndarray  # [n] float32, 0 = not trained on
    prefix: np.ndarray | None = None  # [n] bool, sees both ways
    # [n] int32 of an example of several documents: the number of each from 0, and `Batch.roles`
    documents: np.ndarray | None = None
    roles: np.ndarray | None = None
    # [n] float32, `Batch.values`
    values: np.ndarray | None = None

    def between(self, start: int, stop: int) -> "Piece":
        """Its places start .. stop - 1."""
        here = slice(start, stop)

        def cut(values: np.ndarray | None) -> np.ndarray | None:
            return None if values is None else values[here]

        optional = (cut(each) for each in (self.prefix, self.documents, self.roles, self.values))
        return Piece(self.tokens[here], self.targets[here], self.weights[here], *optional)


def name_rows(rows: np.ndarray, most: int = 5) -> str:
    """Rows of a source as errors name them: `rows 3, 8 and 2 more`."""
    rows = np.unique(rows)
    first = ", ".join(map(str, rows[:most].tolist()))
    more = f" and {len(rows) - most:,} more" if len(rows) > most else ""
    return f"row{'' if len(rows) == 1 else 's'} {first}{more}"


def joined(pieces: Sequence[Piece]) -> Piece:
    """Pieces one after the other; a prefix (roles) that only some have is False (0) in others."""

    def join(name: str, kind: type) -> np.ndarray | None:
        values = [getattr(piece, name) for piece in pieces]
        if all(value is None for value in values):
            return None
        sizes = [len(piece.tokens) for piece in pieces]
        filled = [np.zeros(n, kind) if v is None else v for v, n in zip(values, sizes, strict=True)]
        return np.concatenate(filled)

    return Piece(
        np.concatenate([piece.tokens for piece in pieces]),
        np.concatenate([piece.targets for piece in pieces]),
        np.concatenate([piece.weights for piece in pieces]),
        join("prefix", bool),
        join("documents", np.int32),
        join("roles", np.int32),
        join("values", np.float32),
    )


@dataclasses.dataclass(frozen=True)
class Examples:
    """All examples of a source under one objective. `piece` is a pure function."""

    name: str
    # [N] int64 tokens of each example, as placed in a row.
    lengths: np.ndarray
    # [N] int64 of them trained on.
    trained: np.ndarray
    # [N] int64 UTF-8 bytes of the text that the trained tokens spell (end-of-text has none), so
    # that bits per byte = nats of all trained tokens / ln 2 / bytes. None: the nats are no code
    # for a text, so there are no bits per byte.
    bytes: np.ndarray | None
    # [N] bool: part of the input was cut off to fit the window.
    truncated: np.ndarray
    # Whether an example may be cut into pieces that are trained on apart.
    splittable: bool
    # (example, start, stop) -> its tokens start .. stop - 1.
    piece: Callable[[int, int, int], Piece]
    # The same for many at once, as arrays, one piece after the other: only for speed.
    join: Callable[[np.ndarray, np.ndarray, np.ndarray], Piece] | None = None
    # [N] int64, in order: the row of the source that each example comes from, where rows longer
    # than the window were cut into several. None: example i is row i.
    rows: np.ndarray | None = None
    # Whether the last example of a row ends with end-of-text and is trained on it.
    ends: bool = True
    # Whether every example is one, with an end of its own, also where a row has several.
    complete: bool = False
    # Whether a model drew the answers: any token may be in them, also padding.
    are_sampled: bool = False
    # Tokens that end what is trained on, where that is not the tokenizer's end-of-text.
    stops: tuple[int, ...] = ()
    # What a run's plan says of how they were made.
    note: str = ""
    # Where targets are no tokens: [N] the class or the number of each example; names of classes.
    labels: np.ndarray | None = None
    classes: tuple[str, ...] = ()
    # Files that a model trained on them needs beside its tokenizer, such as the chat template.
    sidecar_files: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def are_rows(self) -> bool:
        """Whether every example is whole: a row of the source, or one of several of a row."""
        return not self.splittable and (self.rows is None or self.complete)

    @property
    def documents(self) -> int:
        """Rows of the source."""
        return len(self) if self.rows is None else len(np.unique(self.rows))

    def label(self, index: int) -> str | None:
        """What an example is called, where its target is no token."""
        if self.labels is None:
            return None
        value = self.labels[index]
        return self.classes[int(value)] if self.classes else f"{value:g}"

    def row_of(self, examples: np.ndarray | int) -> np.ndarray | int:
        """Which rows of the source these examples come from."""
        return examples if self.rows is None else self.rows[examples]

    def pieces(self, examples: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> Piece:
        """`piece` of each, one after the other."""
        if self.join is not None:
            return self.join(examples, starts, stops)
        each = zip(examples.tolist(), starts.tolist(), stops.tolist(), strict=True)
        return joined([self.piece(*one) for one in each])

    def text_bytes(self, rows: np.ndarray | slice = slice(None)) -> int:
        """Sum of `bytes` of the chosen examples; 0 where there are no bits per byte."""
        return 0 if self.bytes is None else int(self.bytes[rows].sum())


class Objective:
    """How the examples of a source become rows of a `Batch`.

    Each is a frozen dataclass with `prepare` and a `kind: Literal[...]` of its own; its other
    fields are the settings that a config may give. Everything else has a default here, so that
    nothing outside objectives/ asks which objective it is.
    """

    # Its name in the registry and in configs.
    kind: str
    # Field of an example -> whether end-of-text is appended when it is tokenized.
    fields: ClassVar[Mapping[str, bool]] = {"text": True}
    # Whether an example has a completion, which may be empty.
    has_completions: ClassVar[bool] = False
    # Whether a prompt may be a conversation of several messages; else it is one of the user's.
    reads_conversations: ClassVar[bool] = False
    # Whether a model trained on it can write text.
    generates: ClassVar[bool] = True
    # What an example is to a loss (`Loss.example_kinds`): a text, or answers to be compared.
    example_kind: ClassVar[str] = "texts"

    @property
    def head_outputs(self) -> int:
        """How many numbers are asked of a head (`Method.head_outputs`); 0: what is asked are
        tokens."""
        return 0

    @property
    def bidirectional(self) -> bool:
        """Whether pieces have a prefix that sees both ways: a batch's shape, known before data."""
        return False

    @property
    def settings(self) -> dict[str, Any]:
        """The fields that differ from their defaults, without `kind`."""

        def default(field: dataclasses.Field) -> Any:
            factory = field.default_factory
            return field.default if factory is dataclasses.MISSING else factory()

        return {
            field.name: value
            for field in dataclasses.fields(cast(Any, self))
            if field.name != "kind" and (value := getattr(self, field.name)) != default(field)
        }

    @property
    def texts_key(self) -> Any:
        """What `texts` depends on beside the example, as JSON."""
        return sorted(self.fields)

    def texts(self, example: Mapping[str, Any], where: str) -> list[str]:
        """What is read of an example: one text a field, by name.

        Raises:
            ValueError: says `where` a field is missing, or no text.
        """
        return [field_text(example, field, where) for field in sorted(self.fields)]

    def encoder(self, tokenizer: Tokenizer, window: int) -> Encoder:
        """Makes the table that `prepare` takes."""
        return TextEncoder(tokenizer, self.fields)

    def prepare(self, table: TokenTable, tokenizer: Tokenizer, window: int) -> Examples:
        """Examples of `table`, none longer than `window` unless they may be split."""
        raise NotImplementedError

    def prompt_ids(
        self, tokenizer: Tokenizer, conversation: Conversation, window: int
    ) -> tuple[list[int], bool]:
        """What the model reads before it answers: exactly what it reads in training.

        Args:
          tokenizer: the model's.
          conversation: it ends with the user's message; without `reads_conversations` that is all.
          window: tokens that the model reads at most.

        Returns:
          Token ids, and whether the prompt was cut.

        Raises:
            ValueError: nothing to begin with, it does not fit, or there is no place for tools or
              more than one message.
        """
        return bare_prompt(tokenizer, only_text(conversation)), False

    def conversation_writer(self, tokenizer: Tokenizer) -> Writer | None:
        """What writes conversations for the model of `tokenizer`; None: it reads one text."""
        return None

    def stop_ids(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        """Tokens besides end-of-text that end an answer."""
        return ()

    def template_names(self, tokenizer: Tokenizer) -> frozenset[str]:
        """Variables that the chat templates read which conversations are written with."""
        return frozenset()

    def check_template(self, tokenizer: Tokenizer) -> None:
        """Raises ValueError if prompts are written unlike the tokenizer's own chat template."""


def only_text(conversation: Conversation) -> str:
    """The user's only message, which is all that an objective without conversations reads.

    Raises:
        ValueError: there is more, which would be lost.
    """
    *before, last = conversation.messages
    contents = {
        "tools": conversation.tools,
        "template arguments": conversation.template_arguments,
        f"{len(before)} messages before the last": before,
        f"a last message of the {last['role']}": last["role"] != "user",
        **{f"a message's {name!r}": last[name] for name in last.keys() - {"role", "content"}},
    }
    for name, value in contents.items():
        if value:
            raise ValueError(
                f"there are {name}, which would be lost: without a chat template there is a place "
                "for one message of the user alone"
            )
    return last["content"]


def bare_prompt(tokenizer: Tokenizer, text: str) -> list[int]:
    """A prompt in no template.

    Raises:
        ValueError: it is empty, and the tokenizer opens texts with no token.
    """
    ids = [*tokenizer.opening, *tokenizer.encode(text)]
    if not ids:
        raise ValueError("the prompt is empty, and this model has no token to begin with")
    return ids
