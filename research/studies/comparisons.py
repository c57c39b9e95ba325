"""What a study may claim of its cells: a comparison, a ratio of best values, a trend along an axis.

Comparison("lora", "full")                    lora ends better than full, at every point
Comparison("rank=1", "rank=16", margin=0.05)  in every form the two differ by less than 0.05
Comparison("rank=1", "full rank=16")          against one cell
Comparison("lora", "full", across="steps")    over all numbers of steps at once, on average
Ratio("lora", "full", 5, 20)                  lora's best rate is 5 to 20 times full tuning's
Trend("rank", -0.1, 0.1, of="best")           the best rate hardly moves as the rank doubles
Trend("steps", 0, cells="lora", less="full")  lora falls behind full as the steps double
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

from research.config.suggestions import suggestion
from research.studies import cells
from research.studies.cells import Cell, Pair

# numbers along an axis that a trend needs
MIN_POINTS = 3


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A claim over two forms or cells, by the metric, over the same seeds: `better` beats `worse`.

    Both are named by their form, their point of the axes or the whole cell (see the module).
    """

    better: str
    worse: str
    # claims instead that they differ by less than this, in the metric
    margin: float | None = None
    # an axis over whose points the difference is averaged, seed by seed: one claim instead of one
    # for each point, which fewer seeds can tell
    across: str = ""
    # what was published of it
    published: str = ""
    # the number that is compared, and which is better; None: the study's
    metric: str | None = None
    goal: Literal["lowest", "highest"] | None = None

    @property
    def text(self) -> str:
        if self.margin is None:
            text = f"{self.better} beats {self.worse}"
        else:
            text = f"{self.better} and {self.worse} differ by less than {self.margin:g}"
        text += f" in {self.metric}" if self.metric else ""
        return f"{text} across {self.across.rpartition('.')[2]}" if self.across else text

    def pairs(self, candidates: Sequence[Cell]) -> list[Pair]:
        """The cells that it compares."""
        return cells.pairs(self.better, self.worse, candidates)

    def groups(self, candidates: Sequence[Cell]) -> dict[str, list[Pair]]:
        """What pairs have in common -> those that one verdict is about."""
        pairs = self.pairs(candidates)
        if not self.across:
            return {pair.label: [pair] for pair in pairs}
        key = _axis(self.across, candidates, "a comparison goes across")
        groups: dict[str, list[Pair]] = {}
        for pair in pairs:
            others = {name: value for name, value in pair.first.point.items() if name != key}
            groups.setdefault(" ".join(Cell("", 0, others).parts), []).append(pair)
        return groups


@dataclasses.dataclass(frozen=True)
class Ratio:
    """A claim on the sweep: the best value of `upper` is `low` to `high` times that of `lower`.

    The best value of a seed is where a parabola through the metric is lowest (or highest), over the
    logarithm of the swept value. That needs a stage in which every seed has three values or more.
    """

    upper: str
    lower: str
    low: float
    high: float = math.inf
    published: str = ""

    def __post_init__(self) -> None:
        if not 0 < self.low < self.high:
            raise ValueError(f"a ratio lies between two positive numbers, not {self.low:g} and "
                             f"{self.high:g}")  # fmt: skip

    @property
    def text(self) -> str:
        size = f"{self.low:g} to {self.high:g}" if self.high < math.inf else f"over {self.low:g}"
        return f"the best value of {self.upper} is {size} times that of {self.lower}"

    def pairs(self, candidates: Sequence[Cell]) -> list[Pair]:
        """The cells that it compares."""
        return cells.pairs(self.upper, self.lower, candidates)


@dataclasses.dataclass(frozen=True)
class Trend:
    """A claim on a number along an axis: its change as the axis doubles is from `low` to `high`.

    Of the metric that is a difference in its unit; of the sweep's best value (as `Ratio` has it) a
    factor.
    """

    # a key of the axes whose values are three positive numbers or more
    along: str
    low: float = -math.inf
    high: float = math.inf
    # what changes: the metric, or the best value of the sweep
    of: Literal["metric", "best"] = "metric"
    # the cells that it is about, by a name as in `Comparison`; all: each form by itself
    cells: str = ""
    # cells whose metric is taken off at each point: one form, or one line of it; none
    less: str = ""
    # None: the study's
    metric: str | None = None
    published: str = ""

    def __post_init__(self) -> None:
        if self.less and self.of == "best":
            raise ValueError("a trend is of best values or less those of other cells, not both")
        if not self.low < self.high or not (math.isfinite(self.low) or math.isfinite(self.high)):
            raise ValueError("a trend lies between `low` and `high`: give one of them, or both")
        if self.of == "best" and not self.high > 0:
            raise ValueError(f"a best value changes by a positive factor, not {self.high:g}")

    @property
    def text(self) -> str:
        key = self.along.rpartition(".")[2]
        number = "the best value" if self.of == "best" else self.metric or "the metric"
        number += f" less that of {self.less}" if self.less else ""
        by, none = ("by a factor of", 1.0) if self.of == "best" else ("by", 0.0)
        if self.high == none and not self._has_low:
            text = f"{number} falls along {key}"
        elif self.low == none and math.isinf(self.high):
            text = f"{number} rises along {key}"
        elif math.isinf(self.high):
            text = f"{number} changes {by} over {self.low:g} as {key} doubles"
        elif not self._has_low:
            text = f"{number} changes {by} under {self.high:g} as {key} doubles"
        else:
            text = f"{number} changes {by} {self.low:g} to {self.high:g} as {key} doubles"
        return f"{text}, {self.cells}" if self.cells else text

    @property
    def _has_low(self) -> bool:
        return self.low > (0.0 if self.of == "best" else -math.inf)

    @property
    def limits(self) -> tuple[float, float]:
        """Of the slope over the axis's binary logarithm; of a best value, that of its own."""
        if self.of == "metric":
            return self.low, self.high
        return math.log2(self.low) if self._has_low else -math.inf, math.log2(self.high)

    def series(self, candidates: Sequence[Cell]) -> dict[str, list[tuple[float, Cell]]]:
        """What its cells have in common -> (number on the axis, cell), rising.

        Raises:
          ValueError: an axis that is not there, or has no three positive numbers; a line that is
            taken off and is not one, or has other numbers.
        """
        lines = self._lines(self.cells, candidates)
        if self.less:
            offs = self.reference(candidates)
            for line in lines.values():
                if missing := [number for number, _ in line if number not in offs]:
                    raise ValueError(f"{self.less!r} has no cell at {missing[0]:g}")
        return lines

    def reference(self, candidates: Sequence[Cell]) -> dict[float, Cell]:
        """Number on the axis -> the cell whose metric is taken off there; empty for none."""
        if not self.less:
            return {}
        lines = self._lines(self.less, candidates)
        if len(lines) > 1:
            raise ValueError(f"{self.less!r} is several lines: {', '.join(lines)}; name one")
        (line,) = lines.values()
        return dict(line)

    def _lines(self, name: str, candidates: Sequence[Cell]) -> dict[str, list[tuple[float, Cell]]]:
        key = _axis(self.along, candidates, "a trend goes along")
        lines = cells.lines_along(key, list(cells.match(name, candidates).values()))
        sizes = [len(line) for line in lines.values()] or [0]
        if min(sizes) < MIN_POINTS:
            raise ValueError(
                f"a trend needs {MIN_POINTS} positive numbers or more along {key}, not {min(sizes)}"
            )
        return lines


def _axis(name: str, candidates: Sequence[Cell], claim: str) -> str:
    """The key of the axis that a name means, whole or by its end.

    Raises:
      ValueError: there is none; says what there is.
    """
    ends = {key: key.rpartition(".")[2] for cell in candidates for key in cell.point}
    keys = [key for key, end in ends.items() if name in (key, end)] or [
        key for key, end in ends.items() if end == name.rpartition(".")[2]
    ]
    if not keys:
        raise ValueError(f"{claim} {name!r}, which is no axis{suggestion(name, ends.values())}")
    return keys[0]


AnyComparison = Comparison | Ratio | Trend
