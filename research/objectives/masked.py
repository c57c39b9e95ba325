"""Say the tokens that are masked in a text that is read both ways (BERT, Devlin 2018)."""

import dataclasses
from typing import ClassVar, Literal

import numpy as np

from research.objectives import markers
from research.objectives.base import Examples, Objective, Piece
from research.objectives.windows import Windows, uniform
from research.text.token_table import TokenTable
from research.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Masked(Objective):
    """Some tokens are hidden, and each is said at its own place (arXiv:1810.04805).

    A piece reads `begin text`, all of it both ways, so the model is an encoder. Of the text's
    tokens a fixed share is chosen; most of those are read as the mask token, some as a random one,
    the rest as they are, and the chosen ones are trained on. `Batch.targets[b, s]` is what place s
    says, and nothing in the step or the loss shifts it: here it is the token that belongs at
    place s itself, where a causal objective puts the next one. The targets of all other places are
    the text too, with weight 0.

    A document longer than a row is cut into windows first. End-of-text is neither read nor
    trained on, since nothing here ever stops writing. There are no bits per byte: the tokens are
    said apart, each knowing the rest, and what that costs is no code for the text.
    """

    # Share of the tokens that are chosen, in (0, 1); at least one of a text.
    rate: float = 0.15
    # Share of the chosen that is read as the mask token ..
    masked: float = 0.8
    # .. and as a random token of the vocabulary; what is left is read as it is.
    random: float = 0.1
    # What is read for a masked token: a special token, or a text of one token that the data never
    # holds.
    mask: str = "<|mask|>"
    # Decides which tokens are chosen, and how they are read.
    seed: int = 0

    kind: Literal["masked"] = "masked"

    generates: ClassVar[bool] = False

    @property
    def bidirectional(self) -> bool:
        """Always."""
        return True

    def __post_init__(self) -> None:
        if not 0 < self.rate < 1:
            raise ValueError(f"rate must be between 0 and 1, not {self.rate}.")
        if not (self.masked >= 0 and self.random >= 0 and self.masked + self.random <= 1):
            raise ValueError(
                "masked and random are shares that are not negative and add up to at most 1, not "
                f"{self.masked} and {self.random}."
            )

    def prepare(self, table: TokenTable, tokenizer: Tokenizer, window: int) -> Examples:
        """Windows of documents, none longer than `window`.

        Raises:
            ValueError: the mask is not one token, a text holds it (names the row), or `window` is
              too short.
        """
        if window < 2:
            raise ValueError(
                f"A window of {window} tokens has no room for text beside the begin token: use a "
                "longer sequence_length."
            )
        ids = markers.encode([self.mask], tokenizer)
        if len(ids[0]) != 1:
            raise ValueError(
                f"The mask {self.mask!r} must be one token, but the tokenizer spells it with "
                f"{len(ids[0])}: name a special token, or a character that the data never holds, "
                "such as '\\x01'."
            )
        markers.check_absent([self.mask], ids, table, "text", tokenizer)
        windows = Windows.cut(table["text"], window - 1)
        texts = windows.text_lengths
        counts = np.where(texts, np.maximum(np.rint(texts * self.rate), 1), 0).astype(np.int64)
        vocabulary = tokenizer.text_ids

        def piece(index: int, start: int, stop: int) -> Piece:
            text, count = windows.text(index), int(counts[index])
            chance = uniform(self.seed, index, np.arange(len(text) + 2 * count))
            here, kind = chance[: len(text)], chance[len(text) : len(text) + count]
            word = chance[len(text) + count :]
            places = np.argpartition(here, count - 1)[:count] if count else np.arange(0)
            places = places[np.argsort(here[places])]
            tokens = text.copy()
            is_random = kind < self.masked + self.random
            word = vocabulary[(word * len(vocabulary)).astype(np.int64)]
            tokens[places] = np.where(is_random, word, text[places])
            tokens[places[kind < self.masked]] = ids[0]
            weights = np.zeros(1 + len(text), np.float32)
            weights[1 + places] = 1
            begin = np.asarray([tokenizer.begin_id], np.int32)
            return Piece(
                np.concatenate([begin, tokens]),
                np.concatenate([begin, text]),
                weights,
                np.ones(len(weights), bool),
            ).between(start, stop)

        return Examples(
            name=table.name,
            lengths=np.where(texts, 1 + texts, 0),
            trained=counts,
            bytes=None,
            truncated=np.zeros(len(windows), bool),
            splittable=False,
            piece=piece,
            rows=windows.rows,
            ends=False,
        )
