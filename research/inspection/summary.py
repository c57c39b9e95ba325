"""Summary of the examples of a split: lengths, labels, duplicates; plain numbers and texts.

`research.inspection.summarize` computes it, `terminal` and `page` show it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

# Similarity from which two texts are nearly equal: of their sets of word 5-grams (Jaccard).
NEAR = 0.8


@dataclasses.dataclass(frozen=True)
class Histogram:
    """Counts [N] of examples between edges [N+1] of their lengths; both empty without examples."""

    edges: list[int]
    counts: list[int]


@dataclasses.dataclass(frozen=True)
class ExampleStatistics:
    """Numbers and lengths of examples, and how they fill packed rows."""

    rows: int
    examples: int
    # Examples without a token, which are left out.
    empty: int
    note: str
    tokens: int
    # smallest, 5%, median, 95%, largest, mean -> tokens
    lengths: dict[str, float]
    histogram: Histogram
    # Examples that were cut.
    truncated: int
    truncated_share: float
    # Share of places that hold a token.
    fill: float
    packed_rows: int
    # Share of tokens that are trained on.
    trained: float
    trained_lengths: dict[str, float]


@dataclasses.dataclass(frozen=True)
class PlanStatistics:
    """Part of a source in the run: its records, its share of the rows and its epochs."""

    format: str
    bad_lines: int
    share: float
    epochs: float


@dataclasses.dataclass(frozen=True)
class Label:
    """A completion, and how often it occurs."""

    text: str
    ids: list[int]
    count: int
    share: float


@dataclasses.dataclass(frozen=True)
class CompletionStatistics:
    """Distinct completions, and prompts that are read alike with another completion."""

    completions: int
    contradictions: int
    # Contradictions in which a prompt was cut.
    contradictions_cut: int
    # (row, the earlier one)
    contradicting_rows: list[tuple[int, int]]
    # Where completions are few.
    labels: list[Label] | None = None


@dataclasses.dataclass(frozen=True)
class PromptOverlap:
    """Held-out prompts that the model reads exactly as one that it is trained on."""

    read_alike: int
    # Those of which one was cut.
    read_alike_cut: int
    # (row, the training split's name, its row)
    read_alike_rows: list[tuple[int, str, int]]


@dataclasses.dataclass(frozen=True)
class Repeats:
    """Rows that are equal to an earlier one of their split, or nearly so."""

    repeated: int
    repeated_share: float
    # (row, the earlier one)
    repeated_rows: list[tuple[int, int]]
    # Rows that were compared for being nearly equal; None: none were.
    near_compared: int | None = None
    near_repeated: int | None = None


@dataclasses.dataclass(frozen=True)
class TrainingOverlap:
    """Held-out rows that are equal to one that is trained on, or nearly so."""

    shared: int
    shared_share: float
    # (row, the training split's name, its row)
    shared_rows: list[tuple[int, str, int]]
    # None: rows were not compared for being nearly equal.
    near_shared: int | None = None
    # (row, the training split's name, its row, similarity)
    nearest: list[tuple[int, str, int, float]] | None = None


@dataclasses.dataclass(frozen=True)
class SplitSummary:
    """Summary of one split of a source."""

    source: str
    split: str
    # Whether the run trains on it; else it is held out.
    trains: bool
    examples: ExampleStatistics
    repeats: Repeats
    # Of examples with prompts.
    completions: CompletionStatistics | None = None
    # Of what is trained on.
    plan: PlanStatistics | None = None
    # Of what is held out.
    prompt_overlap: PromptOverlap | None = None
    training_overlap: TrainingOverlap | None = None

    @property
    def name(self) -> str:
        """Source and split, such as `notes:train`."""
        return f"{self.source}:{self.split}"

    @property
    def labels(self) -> list[Label] | None:
        """The completions, where they are few."""
        return self.completions.labels if self.completions else None

    def to_json(self) -> dict[str, Any]:
        """One flat mapping; what was not looked for is left out."""
        content: dict[str, Any] = {}
        for name, value in dataclasses.asdict(self).items():
            content |= value if isinstance(value, dict) else {name: value}
        return {name: value for name, value in content.items() if value is not None}
