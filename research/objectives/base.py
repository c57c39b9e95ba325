"""What an objective gives to packing: the length of every example, and any stretch of it.

An objective is a frozen dataclass with
  fields: ClassVar, field of the source -> whether end-of-text is appended when it is tokenised;
  prepare(table, tokenizer, window) -> Examples.
Its own fields are the settings that a config may give. A new objective is one file and one line
in `research.objectives.OBJECTIVES`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, ClassVar, Protocol

import numpy as np

if TYPE_CHECKING:
    from research.data.tokenizer import Tokenizer
    from research.data.tokens import TokenTable


@dataclasses.dataclass(frozen=True)
class Piece:
    """n consecutive tokens of one example, not yet placed in a row."""

    tokens: np.ndarray  # [n] int32
    targets: np.ndarray  # [n] int32, what place i says: mostly what follows `tokens[i]`
    weights: np.ndarray  # [n] float32, 0 = not trained on
    prefix: np.ndarray | None = None  # [n] bool, sees both ways

    def between(self, start: int, stop: int) -> "Piece":
        """Its places start .. stop - 1."""
        here = slice(start, stop)
        prefix = None if self.prefix is None else self.prefix[here]
        return Piece(self.tokens[here], self.targets[here], self.weights[here], prefix)


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
    # [N] int64, in order: the row of the source that each example comes from, where rows longer
    # than the window were cut into several. None: example i is row i.
    rows: np.ndarray | None = None
    # Whether the last example of a row ends with end-of-text and is trained on it.
    ends: bool = True

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def documents(self) -> int:
        """Rows of the source."""
        return len(self) if self.rows is None else len(np.unique(self.rows))

    def row_of(self, examples: np.ndarray | int) -> np.ndarray | int:
        """Which rows of the source these examples come from."""
        return examples if self.rows is None else self.rows[examples]

    def text_bytes(self, chosen: np.ndarray | slice = slice(None)) -> int:
        """Sum of `bytes` of the chosen examples; 0 where there are no bits per byte."""
        return 0 if self.bytes is None else int(self.bytes[chosen].sum())


class Objective(Protocol):
    """See the module's docstring."""

    fields: ClassVar[Mapping[str, bool]]

    def prepare(self, table: "TokenTable", tokenizer: "Tokenizer", window: int) -> Examples:
        """Examples of `table`, none longer than `window` unless they may be split."""
        ...
