"""Go on with a text whose beginning is read both ways (Raffel 2020, Tay 2022)."""

import dataclasses
from typing import Literal

import numpy as np

from research.objectives.base import Examples, Objective, Piece
from research.objectives.windows import Windows, uniform
from research.text.token_table import TokenTable
from research.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class PrefixLM(Objective):
    """A text reads and says what it does in `Causal`, but a random prefix sees itself both ways.

    Of n places the first k are the prefix, begin token included; the last of them says the first
    token after it. Trained are those n - k + 1 tokens, end-of-text among them (arXiv:1910.10683,
    section 3.2; the S-denoiser of UL2, arXiv:2205.05131). A document longer than a row is cut into
    windows first, each with a prefix of its own.

    Bits per byte are those of what follows the prefixes, given them: a figure of its own, below
    that of a causal model, which must also say how texts begin.
    """

    # The prefix is drawn evenly from this share of the places ..
    shortest: float = 0.0
    # .. to this one, from 0 to 1. (0.5, 1.0) is the mean of three quarters that UL2 takes.
    longest: float = 1.0
    # Decides where prefixes end.
    seed: int = 0

    kind: Literal["prefix_lm"] = "prefix_lm"

    @property
    def bidirectional(self) -> bool:
        """Always."""
        return True

    def __post_init__(self) -> None:
        if not 0 <= self.shortest <= self.longest <= 1:
            raise ValueError(
                "shortest and longest must be shares from 0 to 1 in this order, not "
                f"{self.shortest} and {self.longest}."
            )

    def prepare(self, table: TokenTable, tokenizer: Tokenizer, window: int) -> Examples:
        """Windows of documents, none longer than `window`."""
        windows = Windows.cut(table["text"], window)
        chances = uniform(self.seed, np.arange(len(windows)), 0)
        share = self.shortest + (self.longest - self.shortest) * chances
        # All places cannot be skipped: the last one of a prefix is trained on.
        skipped = np.minimum((share * windows.lengths).astype(np.int64), windows.lengths - 1)

        def piece(index: int, start: int, stop: int) -> Piece:
            whole = windows.next_tokens(index, tokenizer.begin_id)
            places = np.arange(len(whole.tokens))
            is_trained = places >= skipped[index]
            return dataclasses.replace(
                whole, weights=is_trained.astype(np.float32), prefix=places <= skipped[index]
            ).between(start, stop)

        return Examples(
            name=table.name,
            lengths=windows.lengths,
            trained=windows.lengths - skipped,
            bytes=windows.text_bytes(table.bytes["text"], tokenizer.byte_lengths, skipped),
            truncated=np.zeros(len(windows), bool),
            splittable=False,
            piece=piece,
            rows=windows.rows,
        )
