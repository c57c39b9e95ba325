"""Which source gives which row of a run: a pure function of the row's number.

Shares are kept at every row and not just on average: after any number of rows each source has
given its share, to within a row for each other source. Weights that change with the step, and
sources that are used up, cut a run into stretches of constant shares.
"""

import bisect
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from research.config.schema import Count, NonNegative, PositiveNumber
from research.config.suggestions import suggestion
from research.data.sources.base import SourceConfig

# Shares are kept as whole numbers of this sum.
_WHOLE = 2**30
# Rows that no run reads.
NO_LIMIT = 2**60


@dataclasses.dataclass(frozen=True)
class Phase:
    """Weights from one step on."""

    # First step that it holds for.
    step: Count
    # Source -> weight; sources that are not named keep theirs, and 0 reads nothing of a source.
    weights: Mapping[str, NonNegative]


@dataclasses.dataclass(frozen=True)
class MixtureConfig:
    """How the sources' weights become shares of the rows."""

    # What weights are shares of. A row of text has tens of times the trained tokens of a row of
    # answers, and every trained token counts alike in the loss.
    share_of: Literal["rows", "trained_tokens"] = "rows"
    # A source's weight is multiplied by (its rows)^(1 / temperature): 1 reads all sources equally
    # often, more reads small ones more often ("mT5", Xue et al. 2021, calls 1 / temperature
    # alpha). None: weights are the shares.
    temperature: PositiveNumber | None = None
    # Times that a source is read at most, unless its own `max_epochs` says otherwise; the others
    # then share what it would have given. None: no end.
    max_epochs: PositiveNumber | None = None
    # Weights that begin later, in the order of their steps.
    schedule: tuple[Phase, ...] = ()

    def __post_init__(self) -> None:
        steps = [phase.step for phase in self.schedule]
        if steps != sorted(set(steps)):
            raise ValueError(f"The schedule's steps must increase, not be {steps}.")


@dataclasses.dataclass(frozen=True)
class Interval:
    """Rows of constant shares."""

    # Its first row.
    start: int
    # [sources] whole numbers, shares of their sum.
    parts: tuple[int, ...]
    # [sources] rows that each gave before it.
    before: tuple[int, ...]

    def row_counts(self, rows: int) -> list[int]:
        """Rows of each source among the first `rows` of the stretch.

        The first source takes its share of all, the next one its share of what is left, and so on.
        """
        left, remaining, result = rows, sum(self.parts), []
        for part in self.parts:
            rest = left * (remaining - part) // remaining if remaining else 0
            result.append(left - rest)
            left, remaining = rest, remaining - part
        return result

    def shares(self) -> list[float]:
        """[sources], of sum 1."""
        return [part / sum(self.parts) for part in self.parts]


class Mixture:
    """`mixture[row]` is (number of its source, how many rows that source gave before).

    This is what Grain calls a selection map.
    """

    def __init__(
        self,
        config: MixtureConfig,
        sources: Sequence[SourceConfig],
        sizes: Sequence[int],
        batch_size: int,
        trained: Sequence[float] = (),
    ):
        """Works out all stretches.

        Args:
          config: temperature, caps, schedule.
          sources: their names, weights and caps.
          sizes: rows of each source, read once.
          batch_size: rows of a step.
          trained: tokens of a row that are trained on, on average, of each source.

        Raises:
          ValueError: a phase names no source, or has no weight for any.
        """
        self._names = [source.name for source in sources]
        self._sizes = list(sizes)
        caps = [
            NO_LIMIT if epochs is None else max(1, int(epochs * size))
            for epochs, size in zip(
                [source.max_epochs or config.max_epochs for source in sources], sizes, strict=True
            )
        ]
        weights = {source.name: source.weight for source in sources}
        scale = np.ones(len(sizes))
        if config.temperature is not None:  # of the largest source 1, so that nothing overflows
            scale = np.exp(np.log(np.array(sizes) / max(sizes)) / config.temperature)
        if config.share_of == "trained_tokens":
            scale /= np.array(trained)
        phases = [(0, dict(weights))]
        for phase in config.schedule:
            for name in phase.weights:
                if name not in weights:
                    raise ValueError(
                        f"mixture.schedule, step {phase.step}: there is no source {name!r}"
                        f"{suggestion(name, weights)}"
                    )
            weights |= phase.weights
            if not any(weights.values()):
                raise ValueError(f"mixture.schedule, step {phase.step}: all weights are 0.")
            phases.append((phase.step * batch_size, dict(weights)))
        self.stretches: list[Interval] = []
        row_counts, start = [0] * len(sizes), 0
        ends = [row for row, _ in phases[1:]] + [NO_LIMIT]
        for (_, weights), end in zip(phases, ends, strict=True):
            weight_array = np.array([weights[n] for n in self._names])
            scaled = weight_array * scale
            while start < end:
                open_ = np.array(row_counts) < caps
                if not (weight_array * open_).any():
                    break
                if not (scaled * open_).any():  # all that is left has next to no share
                    scaled = weight_array
                parts = np.rint(scaled * open_ / (scaled * open_).sum() * _WHOLE).astype(int)
                parts = np.where(weight_array * open_ > 0, np.maximum(parts, 1), 0)
                stretch = Interval(start, tuple(parts.tolist()), tuple(row_counts))
                rows = min(end - start, _until_one_is_used_up(stretch, caps))
                self.stretches.append(stretch)
                row_counts = [
                    a + b for a, b in zip(row_counts, stretch.row_counts(rows), strict=True)
                ]
                start += rows
            if start < end:  # All that has weight is used up, so no later row can be filled.
                break
        self._length = start
        self._starts = [stretch.start for stretch in self.stretches]

    def __len__(self) -> int:
        """Rows until every source is used up."""
        return self._length

    def __getitem__(self, row: int) -> tuple[int, int]:
        stretch = self._at(row)
        before, after = (stretch.row_counts(row - stretch.start + more) for more in (0, 1))
        for source, (a, b) in enumerate(zip(before, after, strict=True)):
            if a != b:
                return source, stretch.before[source] + a
        raise AssertionError(f"row {row} is of no source")

    def counts(self, rows: int) -> list[int]:
        """Rows of each source among the first `rows`; ValueError if there are not so many."""
        if rows > len(self):
            raise ValueError(
                f"The sources have {len(self):,} rows to give and not the {rows:,} of this run: "
                "their epochs are capped (max_epochs); train fewer steps, or raise a cap."
            )
        if not rows:
            return [0] * len(self._sizes)
        stretch = self._at(rows - 1)
        return [
            before + here
            for before, here in zip(
                stretch.before, stretch.row_counts(rows - stretch.start), strict=True
            )
        ]

    def describe(self, batch_size: int, steps: int) -> list[str]:
        """A line for each stretch of a run of `steps`: from which step, and the shares."""
        lines = []
        for stretch in self.stretches:
            if stretch.start < steps * batch_size:
                shares = zip(self._names, stretch.shares(), strict=True)
                text = ", ".join(f"{name} {share:.1%}" for name, share in shares if share)
                lines.append(f"from step {stretch.start // batch_size:,}: {text}")
        return lines

    def _at(self, row: int) -> Interval:
        if not 0 <= row < len(self):
            raise IndexError(f"row {row:,} of {len(self):,}: the sources are used up")
        return self.stretches[bisect.bisect_right(self._starts, row) - 1]


def _until_one_is_used_up(stretch: Interval, caps: Sequence[int]) -> int:
    """The first number of rows at which a source that gives has given all that it may."""

    def used_up(rows: int) -> bool:
        return any(
            part and before + here >= cap
            for part, before, here, cap in zip(
                stretch.parts, stretch.before, stretch.row_counts(rows), caps, strict=True
            )
        )

    low, high = 0, 1
    while not used_up(high):
        if high >= NO_LIMIT:
            return NO_LIMIT
        low, high = high, min(2 * high, NO_LIMIT)
    return bisect.bisect_left(range(high + 1), True, lo=low, key=used_up)
