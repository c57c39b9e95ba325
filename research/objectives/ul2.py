"""A mixture of denoisers, each announced by a mode token (UL2, Tay 2022)."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Literal

import numpy as np

from research.config.schema import PositiveNumber
from research.objectives import markers
from research.objectives.base import Examples, Objective, Piece
from research.objectives.prefix_lm import PrefixLM
from research.objectives.span_corruption import SpanCorruption
from research.objectives.windows import uniform
from research.text.token_table import TokenTable
from research.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Denoiser:
    """One way to hide a part of a text."""

    # The mode token that stands in front: a special token of the tokenizer, or text.
    mode: str
    # Share of the tokens that is hidden, in (0, 1), and mean length of a hidden span. Without a
    # mean, the end of the text is hidden, which `rate` does not bound: see `PrefixLM`.
    rate: float = 0.15
    mean_span: float | None = None
    # Share of the documents, relative to the other denoisers.
    weight: PositiveNumber = 1.0


# Table 1 of the paper: regular, sequential and extreme denoising, mixed evenly.
PAPER = (
    Denoiser("[R]", 0.15, 3.0),
    Denoiser("[R]", 0.15, 8.0),
    Denoiser("[S]"),
    Denoiser("[X]", 0.5, 3.0),
    Denoiser("[X]", 0.5, 8.0),
    Denoiser("[X]", 0.15, 64.0),
    Denoiser("[X]", 0.5, 64.0),
)


@dataclasses.dataclass(frozen=True)
class UL2(Objective):
    """Every document is read under one of several denoisers (arXiv:2205.05131, section 3).

    A denoiser's example is that of `SpanCorruption` or `PrefixLM`, with its mode token after the
    first one: `begin [R] a S0 d ..`. Mode tokens are read and never trained on. The windows of a
    document longer than a row share its denoiser. There are no bits per byte, as in
    `SpanCorruption`.
    """

    denoisers: tuple[Denoiser, ...] = PAPER
    # As in `SpanCorruption`.
    sentinel: str = "<extra_id_{number}>"
    # Decides which denoiser a document has, and what each hides.
    seed: int = 0
    kind: Literal["ul2"] = "ul2"

    fields: ClassVar[Mapping[str, bool]] = {"text": True}

    def __post_init__(self) -> None:
        if not self.denoisers:
            raise ValueError("denoisers: at least one is needed.")
        for number in range(len(self.denoisers)):
            self.part(number)

    @property
    def bidirectional(self) -> bool:
        """Always."""
        return True

    def part(self, number: int) -> Objective:
        """The objective of one denoiser, without its mode token."""
        denoiser, seed = self.denoisers[number], self.seed + 1 + number
        if denoiser.mean_span is None:
            return PrefixLM(0.5, 1.0, seed)  # the paper's mean: three quarters are the prefix
        return SpanCorruption(denoiser.rate, denoiser.mean_span, self.sentinel, seed)

    def prepare(self, table: TokenTable, tokenizer: Tokenizer, window: int) -> Examples:
        """Windows of documents under their denoisers, none longer than `window`.

        Raises:
            ValueError: a mode token or a sentinel is unfit, a text holds a sentinel (names the
              row), or `window` is too short.
        """
        names = list(dict.fromkeys(denoiser.mode for denoiser in self.denoisers))
        ids = dict(zip(names, markers.encode(names, tokenizer), strict=True))
        modes = [ids[denoiser.mode] for denoiser in self.denoisers]
        parts = [
            self.part(number).prepare(table, tokenizer, window - len(mode))
            for number, mode in enumerate(modes)
        ]
        edges = np.cumsum([denoiser.weight for denoiser in self.denoisers])
        chances = uniform(self.seed, np.arange(len(table)), 0) * edges[-1]
        choice = np.searchsorted(edges[:-1], chances, side="right")
        # Of all examples of all parts: those of the documents that have this denoiser.
        rows = [np.asarray(part.row_of(np.arange(len(part)))) for part in parts]
        indices = [np.flatnonzero(choice[row] == number) for number, row in enumerate(rows)]
        owner = np.repeat(np.arange(len(parts)), [len(index) for index in indices])
        row_of = np.concatenate([row[index] for row, index in zip(rows, indices, strict=True)])
        order = np.argsort(row_of, kind="stable")
        index_of, owner = np.concatenate(indices)[order], owner[order]

        def gather(name: str) -> np.ndarray:
            values = [getattr(part, name)[i] for part, i in zip(parts, indices, strict=True)]
            return np.concatenate(values)[order]

        def piece(index: int, start: int, stop: int) -> Piece:
            part, number, mode = parts[owner[index]], int(index_of[index]), modes[owner[index]]
            whole = part.piece(number, 0, int(part.lengths[number]))
            assert whole.prefix is not None
            return Piece(
                np.concatenate([whole.tokens[:1], mode, whole.tokens[1:]]),
                np.concatenate([mode, whole.targets]),
                np.concatenate([np.zeros(len(mode), np.float32), whole.weights]),
                np.concatenate([np.ones(len(mode), bool), whole.prefix]),
            ).between(start, stop)

        lengths, sizes = gather("lengths"), np.asarray([len(mode) for mode in modes])
        return Examples(
            name=table.name,
            lengths=np.where(lengths, lengths + sizes[owner], 0),
            trained=gather("trained"),
            bytes=None,
            truncated=gather("truncated"),
            splittable=False,
            piece=piece,
            rows=row_of[order],
        )
