"""Figures of measured numbers with their intervals, as they stand in papers: SVG, PNG and a page.

    drawing = dot_plot(["lora", "full"], {"loss (nats)": [Estimate(...), Estimate(...)]})
    drawing.png, drawing.svg, drawing.page

As wide as a README. Marks differ in shape and dashes too, not in color alone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from research.reports.canvas import (
    DASHES,
    GRID,
    INK,
    MARKERS,
    MUTED,
    SERIES,
    bounds,
    label_ends,
    make_figure,
    note,
    set_scale,
    standalone,
    style,
    to_page,
    to_png,
)
from research.reports.statistics import Estimate

WIDTH = 11.5  # inches
_COLUMNS = 4  # of small panels
MOST_LINES = 6  # that can be told apart in a panel
MOST_NAMES = 40  # that find a place among points; of more, kinds are named
LOG_FACTOR = 4.0  # curves over such a span have a logarithmic axis
REFERENCE = "reference"  # a kind that is gray: what others are measured against


@dataclass(frozen=True)
class Drawing:
    """A figure as files and as part of a page."""

    page: Markup
    png: bytes

    @property
    def svg(self) -> str:
        """A file of its own, with fixed colors on white."""
        return standalone(self.page)


@dataclass(frozen=True)
class Curve:
    """A line through measured points; a y that is not finite is a cross at the top."""

    name: str
    x: Sequence[float]
    y: Sequence[float | Estimate]
    # x of the point with a ring around it
    best: float | None = None
    # x of points with a triangle around them: they lie at an edge of what was tried
    edges: Sequence[float] = ()


@dataclass(frozen=True)
class Panel:
    """Curves over one pair of axes."""

    curves: Sequence[Curve]
    y: str
    log_y: bool = False


def dot_plot(
    names: Sequence[str],
    panels: Mapping[str, Sequence[float | Estimate | None]],
    kinds: Sequence[str] = (),
    caption: str = "",
) -> Drawing:
    """A line per name with its value and interval, one panel per quantity side by side.

    Args:
      names: top to bottom.
      panels: panel title with its unit -> one value per name; None draws a dash. Positive numbers
        that span more than a decade stand on a logarithmic axis.
      kinds: what each name is of; another kind has another color and mark.

    Raises:
      ValueError: nothing to draw, or lengths that differ.
    """
    if not names or not panels:
        raise ValueError("dot_plot needs at least one name and one panel")
    order = [kind for kind in dict.fromkeys(kinds) if kind != REFERENCE]
    with style():
        height = 0.9 + 0.27 * len(names)
        figure, grid = make_figure(height, list(panels), False, False, "", "", WIDTH)
        places = np.arange(len(names))[::-1]
        for axes, (title, values) in zip(grid, panels.items(), strict=True):
            if len(values) != len(names):
                raise ValueError(f"panel {title!r}: {len(values)} values for {len(names)} names")
            set_scale(axes.xaxis, spans_decade(values))
            for number, (place, value) in enumerate(zip(places, values, strict=True)):
                if value is None:
                    side = axes.get_yaxis_transform()  # x from 0 to 1, y in data
                    axes.text(0.01, place, "–", transform=side, va="center", color=MUTED)
                    continue
                color, marker = _mark(order, kinds, number)
                middle, low, high = bounds(value)
                axes.plot([low, high], [place] * 2, color=color, linewidth=1.6)
                axes.plot([middle], [place], marker, color=color, ms=6)
            axes.set_yticks(places, names if axes is grid[0] else [""] * len(names))
            axes.tick_params(axis="y", labelcolor=INK)
            axes.set_ylim(-0.7, len(names) - 0.3)
            axes.margins(x=0.06)
        return _drawing(figure, f"{', '.join(panels)} of {', '.join(names)}", caption)


def curve_plot(
    panels: Sequence[Panel], x: str, caption: str = "", ticks: Sequence[float] = ()
) -> Drawing:
    """Curves with their intervals as bands, one panel per quantity side by side.

    Args:
      x: label of the axis that all share.
      ticks: the numbers on it; they stand on a logarithmic axis where they span a decade.

    Raises:
      ValueError: nothing to draw.
    """
    if not panels or not all(panel.curves for panel in panels):
        raise ValueError("curve_plot needs at least one panel with a curve")
    with style():
        figure, grid = make_figure(4.4, [""] * len(panels), False, False, x, "", WIDTH)
        for axes, panel in zip(grid, panels, strict=True):
            _set_x(axes, ticks or [number for curve in panel.curves for number in curve.x])
            set_scale(axes.yaxis, panel.log_y)
            axes.set_ylabel(panel.y)
            ends = [end for i, c in enumerate(panel.curves) for end in _draw(axes, c, i)]
            axes.margins(x=0.03, y=0.08)
            if len(panel.curves) > 1:
                label_ends(figure, axes, ends)
        names = dict.fromkeys(curve.name for panel in panels for curve in panel.curves)
        description = f"{', '.join(p.y for p in panels)} against {x}: {', '.join(names)}"
        return _drawing(figure, description, caption)


def small_multiples(
    panels: Mapping[str, Sequence[Curve]],
    x: str,
    y: str,
    caption: str = "",
    log_y: bool | None = None,
) -> Drawing:
    """Many small panels over the same axes, each with all curves of the others in gray behind it.

    Args:
      log_y: whether heights stand on a logarithmic axis; None: where they differ by much.

    Raises:
      ValueError: nothing to draw.
    """
    from matplotlib.figure import Figure

    curves = [curve for each in panels.values() for curve in each]
    if not curves:
        raise ValueError("small_multiples needs at least one curve")
    columns = min(_COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    if log_y is None:
        log_y = spans_decade((number for curve in curves for number in curve.y), LOG_FACTOR)
    with style():
        height = 1.75 * rows if rows > 1 else 3.4
        figure = Figure(figsize=(WIDTH, 0.7 + height), layout="constrained")
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for axes in grid.flat:
            _set_x(axes, [number for curve in curves for number in curve.x])
            set_scale(axes.yaxis, log_y)
        for axes, (name, own) in zip(grid.flat, panels.items(), strict=False):
            for other in curves:
                gray = {"color": GRID, "linewidth": 1, "alpha": 0.7, "zorder": 0}
                axes.plot(other.x, _middles(other), **gray)
            for number, curve in enumerate(own):
                _draw(axes, curve, number)
            axes.set_title(name, loc="left", fontsize=11, color=INK)
        for axes in list(grid.flat)[len(panels) :]:
            axes.set_visible(False)
        for column in range(columns):  # numbers under the lowest panel of each column
            lowest = grid[(len(panels) - 1 - column) // columns, column]
            lowest.tick_params(labelbottom=True)
        if max(map(len, panels.values())) > 1:
            _legend(figure, grid[0, 0])
        figure.supxlabel(x, fontsize=12, color=MUTED)
        figure.supylabel(y, fontsize=12, color=MUTED)
        names = ", ".join(curve.name for curve in curves)
        return _drawing(figure, f"{y} against {x}: {names}", caption)


def cross_plot(
    points: Mapping[str, tuple[float | Estimate, float | Estimate]],
    x: str,
    y: str,
    kinds: Sequence[str] = (),
    caption: str = "",
) -> Drawing:
    """One quantity against another, with the intervals of both.

    Args:
      points: name -> (x, y).
      kinds: what each point is of; another kind has another color and mark. Of many points the
        kinds are named, and not the points.

    Raises:
      ValueError: nothing to draw.
    """
    if not points:
        raise ValueError("cross_plot needs at least one point")
    order = [kind for kind in dict.fromkeys(kinds) if kind != REFERENCE]
    with style():
        figure, (axes,) = make_figure(6.4, [""], False, False, x, y, WIDTH)
        labels: list[tuple[str, float, float]] = []
        for number, (name, (x_value, y_value)) in enumerate(points.items()):
            color, marker = _mark(order, kinds, number)
            (middle, left, right), (height, low, high) = bounds(x_value), bounds(y_value)
            faint = {"color": color, "linewidth": 1, "alpha": 0.35, "zorder": 1}
            axes.plot([left, right], [height] * 2, **faint)
            axes.plot([middle] * 2, [low, high], **faint)
            is_first = bool(kinds) and kinds[number] not in kinds[:number]
            label = kinds[number] if is_first else None
            axes.plot([middle], [height], marker, color=color, ms=7, zorder=3, label=label)
            labels.append((name, middle, height))
        axes.margins(x=0.04, y=0.06)
        if len(points) > MOST_NAMES and kinds:
            _legend(figure, axes, columns=4)
        else:
            _place_names(figure, axes, labels)
        return _drawing(figure, f"{y} against {x}: {', '.join(points)}", caption)


def spans_decade(values: Iterable[float | Estimate | None], factor: float = 10.0) -> bool:
    """Whether numbers differ by a factor, and they and their intervals are positive."""
    known = [bounds(value) for value in values if value is not None]
    finite = [each for each in known if all(map(math.isfinite, each))]
    if not finite or min(low for _, low, _ in finite) <= 0:
        return False
    middles = [middle for middle, _, _ in finite]
    return max(middles) >= factor * min(middles)


def _set_x(axes: Any, numbers: Sequence[float]) -> None:
    """The x axis, with a number at every value where they are few."""
    values = sorted(set(numbers))
    set_scale(axes.xaxis, spans_decade(values))
    if len(values) <= MOST_LINES:
        axes.set_xticks(values)


def _mark(order: Sequence[str], kinds: Sequence[str], number: int) -> tuple[str, str]:
    """(color, shape) of what one name is of."""
    if not kinds:
        return SERIES[0], MARKERS[0]
    if kinds[number] == REFERENCE:
        return MUTED, "D"
    place = order.index(kinds[number])
    turn = place // len(SERIES)  # the same color again has another shape
    return SERIES[place % len(SERIES)], MARKERS[(place + turn) % len(MARKERS)]


def _place_names(figure: Any, axes: Any, points: Sequence[tuple[str, float, float]]) -> None:
    """Names of points beside them, where they cover least; a line leads to one that lies far."""
    from matplotlib.transforms import Bbox

    figure.draw_without_rendering()
    frame = axes.get_window_extent()
    boxes = []
    for _, x, y in points:
        left, bottom = axes.transData.transform((x, y)) - 5
        boxes.append(Bbox.from_bounds(left, bottom, 10, 10))
    for name, x, y in points:
        choices = []
        for distance, angle in itertools.product((11, 24, 40, 58), range(0, 360, 30)):
            right, up = (distance * part(math.radians(angle)) for part in (math.cos, math.sin))
            text = note(axes, name, (x, y), (right, up), INK)
            side = "left" if right > 1 else "right" if right < -1 else "center"
            text.set(fontsize=10, horizontalalignment=side)
            box = text.get_window_extent()
            text.remove()
            shared = [Bbox.intersection(box, other) for other in boxes]
            covered = sum(part.width * part.height for part in shared if part is not None)
            is_outside = not (frame.x0 <= box.x0 and box.x1 <= frame.x1)
            is_outside |= not (frame.y0 <= box.y0 and box.y1 <= frame.y1)
            straight = 8 * (angle % 90 == 0)  # intervals lie there
            cost = covered + 1e4 * is_outside + distance + straight
            choices.append((cost, angle, (right, up), side, box))
        _, _, offset, side, box = min(choices, key=lambda choice: choice[:2])
        text = note(axes, name, (x, y), offset, INK)
        text.set(fontsize=10, horizontalalignment=side, zorder=4)
        if math.hypot(*offset) > 12:
            place = axes.transData.inverted().transform(
                axes.transData.transform((x, y)) + np.asarray(offset)
            )
            line = {"color": MUTED, "linewidth": 0.6, "zorder": 2}
            axes.plot([x, place[0]], [y, place[1]], scalex=False, scaley=False, **line)
        boxes.append(box)


def _legend(figure: Any, axes: Any, columns: int | None = None) -> None:
    handles, names = axes.get_legend_handles_labels()
    ncols = columns or len(names)
    figure.legend(handles, names, loc="outside upper left", frameon=False, ncols=ncols)


def _middles(curve: Curve) -> list[float]:
    middles = [bounds(value)[0] for value in curve.y]
    return [middle if math.isfinite(middle) else math.nan for middle in middles]


def _draw(axes: Any, curve: Curve, number: int) -> list[tuple[float, float, str, str]]:
    """Draws a curve, its band and its mark; gives the end of it that bears its name."""
    color, dashes = SERIES[number % len(SERIES)], DASHES[number % len(DASHES)]
    middles = _middles(curve)
    limits = np.array([bounds(value)[1:] for value in curve.y], float)
    limits[~np.isfinite(middles)] = math.nan
    if (limits[:, 0] < limits[:, 1]).any():
        axes.fill_between(curve.x, *limits.T, color=color, alpha=0.15, linewidth=0)
    line = {"color": color, "linestyle": dashes, "linewidth": 1.6, "ms": 4.5}
    axes.plot(curve.x, middles, marker=MARKERS[number % len(MARKERS)], label=curve.name, **line)
    for x, height in zip(curve.x, middles, strict=True):
        if not math.isfinite(height):  # a cross at the top
            top = {"transform": axes.get_xaxis_transform(), "clip_on": False}
            axes.plot([x], [0.97], "x", color=color, ms=6, **top)
            continue
        ring = {"color": color, "markerfacecolor": "none", "ms": 11, "mew": 1.5}
        if x in curve.edges:
            axes.plot([x], [height], "^", **ring | {"color": INK})
            edge = note(axes, "edge", (x, height), (0, 14), INK)
            edge.set(horizontalalignment="center", fontsize=10)
        elif x == curve.best:
            axes.plot([x], [height], "o", **ring)
    finite = [(x, y) for x, y in zip(curve.x, middles, strict=True) if math.isfinite(y)]
    return [(*finite[-1], curve.name, color)] if finite else []


def _drawing(figure: Any, description: str, caption: str) -> Drawing:
    return Drawing(to_page(figure, description, caption), to_png(figure))
