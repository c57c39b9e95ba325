"""Results of the quickstart, as results.json keeps them and the page shows them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from research.reports.page import Sample
from research.reports.statistics import Estimate


@dataclasses.dataclass
class TableRow:
    """One way to the task: what it costs and how well it answers. None: it does not apply."""

    name: str
    # "base", "language model" or "baseline"
    kind: str
    objective: str | None = None
    # documents or labelled examples, and tokens, that were read in training
    examples: float | None = None
    tokens: float | None = None
    # different labelled examples
    labels: float | None = None
    # parameters that train, and their share of the base's
    trainable: int | None = None
    trainable_share: float | None = None
    # of training
    flops: float | None = None
    seconds: float | None = None
    peak_memory: int | None = None
    # bytes on disk
    artifact: int | None = None
    # to answer a question
    answer_seconds: float | None = None
    # questions that were cut
    truncated: int | None = None
    # bits per byte of held-out text
    bits_per_byte: float | None = None
    # bits per byte, after minus before tuning
    forgetting: Estimate | None = None
    # share of right answers
    quality: Estimate | None = None
    # quality minus that of the row above, and the p-value of "neither is better"
    gain: Estimate | None = None
    gain_p_value: float | None = None

    def values(self) -> dict[str, Any]:
        """Column -> value, for a table."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


@dataclasses.dataclass(frozen=True)
class TextRow:
    """Bits per byte of one kind of held-out text: of the base, xz and the token models."""

    kind: str
    bytes: int
    model: float
    xz: float
    unigram: float
    bigram: float


@dataclasses.dataclass(frozen=True)
class TaskFacts:
    """Numbers of the task and its split."""

    labels: int
    questions: int
    # table row -> questions that were cut
    cut: dict[str, int]
    leak: dict[str, float]
    key_verbatim: float
    # tokens of a question
    window: int


@dataclasses.dataclass(frozen=True)
class Curve:
    """Loss against tokens seen."""

    tokens: list[float]
    loss: list[float]


@dataclasses.dataclass(frozen=True)
class Continuation:
    """Text of the base after a few words."""

    prompt: str
    text: str


@dataclasses.dataclass(frozen=True)
class Samples:
    """Greedy answers of every run to test notices, and text of the base."""

    notices: list[Sample]
    texts: list[Continuation]


@dataclasses.dataclass(frozen=True)
class Results:
    """Results of a quickstart: everything that the table and the page show."""

    table: list[TableRow]
    text: list[TextRow]
    task: TaskFacts
    # run -> its curve
    curves: dict[str, Curve]
    samples: Samples
    # run -> its config
    configs: dict[str, Any]
    versions: Mapping[str, str]
    caveat: str
    device: str
    # how it was made
    command: str = ""
    seconds: float = 0.0

    @property
    def answering_rows(self) -> list[TableRow]:
        """The rows that answer questions, by which they are compared."""
        return [row for row in self.table if row.quality is not None]

    def to_json(self) -> dict[str, Any]:
        """Content of results.json; numbers that do not apply are left out."""
        content = dataclasses.asdict(self)
        content["table"] = [_row_to_json(row) for row in self.table]
        return content


def _row_to_json(row: TableRow) -> dict[str, Any]:
    content = {name: value for name, value in dataclasses.asdict(row).items() if value is not None}
    if row.gain is not None:
        content["gain"]["p"] = content.pop("gain_p_value")
    return content
