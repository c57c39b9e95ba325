"""Plots as inline SVG, drawn by Matplotlib in one calm style for light and dark pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import ArrayLike

from research.reports.canvas import (
    DASHES,
    INK,
    MARKERS,
    MUTED,
    SERIES,
    bounds,
    check_drawable,
    label_ends,
    make_figure,
    note,
    style,
    to_page,
)
from research.reports.statistics import Estimate
from research.reports.tables import format_si


@dataclass(frozen=True)
class Point:
    """One labelled point of `scatter_plot`; an `Estimate` draws its interval. kind: its color."""

    name: str
    x: float
    y: float | Estimate
    kind: str = ""


def line_plot(
    series: Mapping[str, tuple[ArrayLike, ArrayLike]],
    x: str,
    y: str,
    caption: str = "",
    log_x: bool = False,
    log_y: bool = False,
    smooth: int = 1,
) -> Markup:
    """Curves such as losses, each named at its right end.

    Args:
      series: name -> (x values [N], y values [N]); a y that is not finite leaves a gap.
      x, y: axis labels with their units.
      smooth: draws the mean over this many neighbouring points, with the raw values faint behind.

    Raises:
      ValueError: nothing to draw, lengths that differ, or a value that a log axis cannot show.
    """
    if not series:
        raise ValueError("line_plot needs at least one series")
    with style():
        figure, (axes,) = make_figure(4.6, [""], log_x, log_y, x, y)
        ends = []
        for i, (name, (x_values, y_values)) in enumerate(series.items()):
            xs, ys = np.asarray(x_values, float), np.asarray(y_values, float)
            if xs.shape != ys.shape or xs.ndim != 1:
                raise ValueError(f"series {name!r}: x has shape {xs.shape}, y has {ys.shape}")
            check_drawable(f"series {name!r}, x", xs, log_x)
            check_drawable(f"series {name!r}, y", ys, log_y)
            color = SERIES[i % len(SERIES)]
            width = min(smooth, len(xs))
            if width > 1:
                axes.plot(xs, ys, color=color, linewidth=0.7, alpha=0.3)
                window = np.full(width, 1 / width)
                xs, ys = np.convolve(xs, window, "valid"), np.convolve(ys, window, "valid")
            axes.plot(xs, ys, color=color, linestyle=DASHES[i % len(DASHES)], linewidth=1.8)
            finite = np.flatnonzero(np.isfinite(ys))
            if len(finite):
                ends.append((xs[finite[-1]], ys[finite[-1]], name, color))
        axes.margins(x=0.01)
        label_ends(figure, axes, ends)
        return to_page(figure, f"{y} against {x}: {', '.join(series)}", caption)


def scatter_plot(
    points: Sequence[Point],
    x: str,
    y: str,
    caption: str = "",
    log_x: bool = True,
    references: Mapping[str, float] | None = None,
) -> Markup:
    """Points with their names and intervals, for example quality against trained parameters.

    references: name -> y of horizontal lines, for results that have no place on the x axis.

    Raises:
      ValueError: no points, or a value that is not finite or that a log axis cannot show.
    """
    if not points:
        raise ValueError("scatter_plot needs at least one point")
    with style():
        figure, (axes,) = make_figure(5.6, [""], log_x, False, x, y)
        kinds = list(dict.fromkeys(point.kind for point in points))
        for point in points:
            i = kinds.index(point.kind)
            color, marker = SERIES[i % len(SERIES)], MARKERS[i % len(MARKERS)]
            value, low, high = bounds(point.y)
            check_drawable(f"point {point.name!r}, x", np.array([point.x], float), log_x)
            axes.plot([point.x] * 2, [low, high], color=color, linewidth=1.4)
            label = point.kind or None
            axes.plot([point.x], [value], marker, color=color, markersize=7, label=label)
        axes.margins(x=0.1, y=0.1)
        # The limits stay as the points set them; the lines only have to fit inside.
        lines = dict(references or {})
        for value in lines.values():
            axes.axhline(value, color=MUTED, linewidth=1, linestyle=(0, (2, 2)), zorder=0)
        if len(kinds) > 1:
            handles, names = axes.get_legend_handles_labels()
            unique = dict(zip(names, handles, strict=True))
            corner = {"loc": "lower left", "bbox_to_anchor": (-0.02, 1.0)}
            axes.legend(unique.values(), unique, frameon=False, ncols=len(unique), **corner)
        edge = axes.get_xlim()[1]
        label_ends(figure, axes, [(edge, value, name, MUTED) for name, value in lines.items()])
        _label_points(figure, axes, points)
        return to_page(figure, f"{y} against {x}: {', '.join(p.name for p in points)}", caption)


def bar_plot(
    names: Sequence[str],
    panels: Mapping[str, Sequence[float | Estimate | None]],
    caption: str = "",
    log_x: bool = False,
) -> Markup:
    """Horizontal bars, one panel per quantity side by side, each value printed at its bar.

    Args:
      names: one per bar, top to bottom.
      panels: panel title with its unit -> one value per name; None draws a dash.

    Raises:
      ValueError: nothing to draw, lengths that differ, or a value that a log axis cannot show.
    """
    if not names or not panels:
        raise ValueError("bar_plot needs at least one name and one panel")
    with style():
        height = 0.6 + 0.36 * len(names)
        figure, grid = make_figure(height, list(panels), log_x, False, "", "")
        places = np.arange(len(names))[::-1]
        for i, (axes, (title, values)) in enumerate(zip(grid, panels.items(), strict=True)):
            if len(values) != len(names):
                raise ValueError(f"panel {title!r}: {len(values)} values for {len(names)} names")
            for name, place, value in zip(names, places, values, strict=True):
                if value is None:
                    side = axes.get_yaxis_transform()  # x from 0 to 1, y in data
                    axes.text(0.02, place, "–", transform=side, va="center", color=MUTED)
                    continue
                number, low, high = bounds(value)
                check_drawable(f"panel {title!r}, {name!r}", np.array([number, low]), log_x)
                axes.barh([place], [number], height=0.64, color=SERIES[i % len(SERIES)])
                if high > low:
                    axes.plot([low, high], [place] * 2, color=INK, linewidth=1.2)
                note(axes, format_si(number), (max(number, high), place), (4, 0), INK)
            axes.set_yticks(places, names if i == 0 else [""] * len(names), color=INK)
            axes.set_ylim(-0.6, len(names) - 0.4)
            axes.margins(x=0.3)  # room for the printed values
            axes.tick_params(bottom=False, labelbottom=False)
            axes.grid(False)
            axes.spines["bottom"].set_visible(False)
        return to_page(figure, f"{', '.join(panels)} of {', '.join(names)}", caption)


def _label_points(figure: Any, axes: Any, points: Sequence[Point]) -> None:
    """Puts each name right, left, above or below its point: where it covers least."""
    from matplotlib.transforms import Bbox

    figure.draw_without_rendering()
    frame = axes.get_window_extent()
    boxes = []
    for point in points:
        _, low, high = bounds(point.y)
        (x, bottom), (_, top) = axes.transData.transform([(point.x, low), (point.x, high)])
        boxes.append(Bbox([[x - 5, bottom - 5], [x + 5, top + 5]]))
    for own, point in enumerate(points):
        value, low, high = bounds(point.y)
        others = boxes[:own] + boxes[own + 1 :]  # the offsets keep a name off its own point
        choices = []
        for y, offset, side in (
            (value, (9, 0), "left"),
            (value, (-9, 0), "right"),
            (high, (0, 11), "center"),
            (low, (0, -11), "center"),
        ):
            text = note(axes, point.name, (point.x, y), offset, INK)
            text.set_horizontalalignment(side)
            box = text.get_window_extent()
            outside = max(0, frame.x0 - box.x0) + max(0, box.x1 - frame.x1)
            shared = [Bbox.intersection(box, other) for other in others]
            covered = sum(part.width * part.height for part in shared if part is not None)
            choices.append((covered + outside * box.height, text, box))
        _, best, box = min(choices, key=lambda choice: choice[0])
        for _, text, _ in choices:
            if text is not best:
                text.remove()
        boxes.append(box)
