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
    targets: np.ndarray  # [n] int32, `targets[i]` follows `tokens[i]`
    weights: np.ndarray  # [n] float32, 0 = not trained on
    prefix: np.ndarray | None = None  # [n] bool, sees both ways


@dataclasses.dataclass(frozen=True)
class Examples:
    """All examples of a source under one objective. `piece` is a pure function."""

    name: str
    # [N] int64 tokens of each example, as placed in a row.
    lengths: np.ndarray
    # [N] int64 of them trained on.
    trained: np.ndarray
    # [N] int64 UTF-8 bytes of the text that the trained tokens spell (end-of-text has none), so
    # that bits per byte = nats of all trained tokens / ln 2 / bytes.
    bytes: np.ndarray
    # [N] bool: part of the input was cut off to fit the window.
    truncated: np.ndarray
    # Whether an example may be cut into pieces that are trained on apart.
    splittable: bool
    # (example, start, stop) -> its tokens start .. stop - 1.
    piece: Callable[[int, int, int], Piece]

    def __len__(self) -> int:
        return len(self.lengths)


class Objective(Protocol):
    """See the module's docstring."""

    fields: ClassVar[Mapping[str, bool]]

    def prepare(self, table: "TokenTable", tokenizer: "Tokenizer", window: int) -> Examples:
        """Examples of `table`, none longer than `window` unless they may be split."""
        ...
