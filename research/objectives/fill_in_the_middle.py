"""Fill in the middle of a text, given what stands before and after it (Bavarian 2022)."""

import dataclasses
from typing import Literal

import numpy as np

from research.objectives import markers
from research.objectives.base import Examples, Objective, Piece
from research.objectives.windows import Windows, uniform
from research.text.token_table import TokenTable
from research.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class FillInTheMiddle(Objective):
    """Causal, but a share of texts is cut at two random places and reordered (arXiv:2207.14255).

    P, S and M are the markers; a text `prefix middle suffix` becomes

        begin P prefix S suffix M middle end    (PSM)
        begin P S suffix M prefix middle end    (SPM, the variant that shares PSM's beginning)

    and every token is trained on, the markers too. The end says that the middle has met the
    suffix. A document longer than a row is cut into windows first and each is reordered for
    itself; a window that stays as it was is read as in `Causal`.

    The places of cuts are between tokens. The paper cuts between characters, which serves a cursor
    in the middle of a word better; but then the tokens would not be those of the whole text, nor
    their number known ahead.

    Bits per byte are those of the text in the order that is said, the markers' cost included: a
    little above what the text alone costs.
    """

    # Share of texts that are reordered, in (0, 1]. The paper finds 0.5 to 0.9 good, and next-token
    # loss no worse for it.
    share: float = 0.5
    # Share of the reordered ones that are SPM, in [0, 1]. The paper mixes both evenly.
    suffix_first: float = 0.5
    # Stands before the prefix: a special token, or text that the data never holds.
    prefix: str = "<|fim_prefix|>"
    # Stands before the suffix.
    suffix: str = "<|fim_suffix|>"
    # Stands before the middle.
    middle: str = "<|fim_middle|>"
    # Decides which texts are reordered, and where they are cut.
    seed: int = 0

    kind: Literal["fill_in_the_middle"] = "fill_in_the_middle"

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share must be above 0 and at most 1, not {self.share}.")
        if not 0 <= self.suffix_first <= 1:
            raise ValueError(f"suffix_first must be from 0 to 1, not {self.suffix_first}.")

    def prepare(self, table: TokenTable, tokenizer: Tokenizer, window: int) -> Examples:
        """Windows of documents, reordered or not, none longer than `window`.

        Raises:
            ValueError: a marker is unfit, a text holds it (names the row), or `window` is too
              short.
        """
        names = (self.prefix, self.suffix, self.middle)
        ids = markers.encode(names, tokenizer)
        extra = 1 + sum(map(len, ids))
        if window <= extra:
            raise ValueError(
                f"A window of {window} tokens has no room for text beside the begin token and the "
                f"markers ({extra} tokens): use a longer sequence_length, or markers that are "
                "special tokens."
            )
        markers.check_absent(names, ids, table, "text", tokenizer)
        windows = Windows.cut(table["text"], window - extra)
        chances = uniform(self.seed, np.arange(len(windows)), 0)
        is_reordered = (chances < self.share) & (windows.text_lengths > 0)
        lengths = np.where(is_reordered, extra + windows.text_lengths, windows.lengths)

        def piece(index: int, start: int, stop: int) -> Piece:
            if is_reordered[index]:
                whole = self._moved(index, windows.text(index), ids, tokenizer)
            else:
                whole = windows.next_tokens(index, tokenizer.begin_id)
            return whole.between(start, stop)

        none = np.zeros(len(windows), np.int64)
        return Examples(
            name=table.name,
            lengths=lengths,
            trained=lengths,
            bytes=windows.text_bytes(table.bytes["text"], tokenizer.byte_lengths, none),
            truncated=np.zeros(len(windows), bool),
            splittable=False,
            piece=piece,
            rows=windows.rows,
        )

    def _moved(
        self, index: int, text: np.ndarray, ids: list[np.ndarray], tokenizer: Tokenizer
    ) -> Piece:
        order, *places = uniform(self.seed, index, np.arange(1, 4))
        first, last = sorted(int(place * (len(text) + 1)) for place in places)
        before, between, after = np.split(text, [first, last])
        prefix, suffix, middle = ids
        if order < self.suffix_first:
            parts = [prefix, suffix, after, middle, before, between]
        else:
            parts = [prefix, before, suffix, after, middle, between]
        begin, end = np.asarray([[tokenizer.begin_id], [tokenizer.end_id]], np.int32)
        whole = np.concatenate([begin, *parts, end])
        return Piece(whole[:-1], whole[1:], np.ones(len(whole) - 1, np.float32))
