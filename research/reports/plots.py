"""Plots as inline SVG, drawn by Matplotlib in one calm style for light and dark pages.

Colors leave here as the page's style-sheet variables and text as text, so a plot follows the
page's font and color scheme. Labels are data, never mathematics or markup: they are escaped.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import ArrayLike, NDArray

from research.reports.markup import render
from research.reports.statistics import Estimate
from research.reports.tables import format_si

# Okabe and Ito's color-blind-safe hues (2008) in the order used; the page's style sheet gives
# each a shade of enough contrast on light and on dark.
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
INK, MUTED, GRID = "#111111", "#777777", "#dddddd"
DASHES = ("-", (0, (6, 2)), (0, (2, 1.5)), (0, (8, 2, 2, 2)), (0, (4, 1)), (0, (1, 1)))
MARKERS = "os^Dvp"
NAMESPACES = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'


# What the page's style sheet calls each of them.
VARIABLES = {color: f"var(--series{i})" for i, color in enumerate(SERIES)}
VARIABLES |= {INK: "var(--ink)", MUTED: "var(--muted)", GRID: "var(--rule)"}
STYLE: Any = {  # Matplotlib settings
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "graft",  # the same plot is the same bytes
    "text.parse_math": False,  # a label with two $ is a label
    "font.family": "sans-serif",
    "font.size": 12,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": GRID,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "ytick.major.size": 0,
    "legend.labelcolor": INK,
    "figure.facecolor": "none",
    "figure.dpi": 72,  # one pixel is one point
}


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
    with _style():
        figure, (axes,) = _figure(4.6, [""], log_x, log_y, x, y)
        ends = []
        for i, (name, (x_values, y_values)) in enumerate(series.items()):
            xs, ys = np.asarray(x_values, float), np.asarray(y_values, float)
            if xs.shape != ys.shape or xs.ndim != 1:
                raise ValueError(f"series {name!r}: x has shape {xs.shape}, y has {ys.shape}")
            _check(f"series {name!r}, x", xs, log_x)
            _check(f"series {name!r}, y", ys, log_y)
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
        _label_ends(figure, axes, ends)
        return _svg(figure, f"{y} against {x}: {', '.join(series)}", caption)


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
    with _style():
        figure, (axes,) = _figure(5.6, [""], log_x, False, x, y)
        kinds = list(dict.fromkeys(point.kind for point in points))
        for point in points:
            i = kinds.index(point.kind)
            color, marker = SERIES[i % len(SERIES)], MARKERS[i % len(MARKERS)]
            value, low, high = _bounds(point.y)
            _check(f"point {point.name!r}, x", np.array([point.x], float), log_x)
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
        _label_ends(figure, axes, [(edge, value, name, MUTED) for name, value in lines.items()])
        _label_points(figure, axes, points)
        return _svg(figure, f"{y} against {x}: {', '.join(p.name for p in points)}", caption)


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
    with _style():
        height = 0.6 + 0.36 * len(names)
        figure, grid = _figure(height, list(panels), log_x, False, "", "")
        places = np.arange(len(names))[::-1]
        for i, (axes, (title, values)) in enumerate(zip(grid, panels.items(), strict=True)):
            if len(values) != len(names):
                raise ValueError(f"panel {title!r}: {len(values)} values for {len(names)} names")
            for name, place, value in zip(names, places, values, strict=True):
                if value is None:
                    side = axes.get_yaxis_transform()  # x from 0 to 1, y in data
                    axes.text(0.02, place, "–", transform=side, va="center", color=MUTED)
                    continue
                number, low, high = _bounds(value)
                _check(f"panel {title!r}, {name!r}", np.array([number, low]), log_x)
                axes.barh([place], [number], height=0.64, color=SERIES[i % len(SERIES)])
                if high > low:
                    axes.plot([low, high], [place] * 2, color=INK, linewidth=1.2)
                _note(axes, format_si(number), (max(number, high), place), (4, 0), INK)
            axes.set_yticks(places, names if i == 0 else [""] * len(names), color=INK)
            axes.set_ylim(-0.6, len(names) - 0.4)
            axes.margins(x=0.3)  # room for the printed values
            axes.tick_params(bottom=False, labelbottom=False)
            axes.grid(False)
            axes.spines["bottom"].set_visible(False)
        return _svg(figure, f"{', '.join(panels)} of {', '.join(names)}", caption)


def _style() -> Any:
    # Matplotlib takes about a second to import: only programs that draw pay for it.
    from matplotlib import rc_context

    return rc_context(STYLE)


def _figure(
    height: float, titles: Sequence[str], log_x: bool, log_y: bool, x: str, y: str
) -> tuple[Any, list[Any]]:
    """A figure of 13.5 by `height` inches and one axes object per title, left to right."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, NullFormatter

    figure = Figure(figsize=(13.5, height), layout="constrained")
    grid = list(figure.subplots(1, len(titles), squeeze=False)[0])
    for axes, title in zip(grid, titles, strict=True):
        axes.set_title(title, loc="left", fontsize=12, color=INK)
        axes.set_xscale("log" if log_x else "linear")
        axes.set_yscale("log" if log_y else "linear")
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: format_si(value)))
            axis.set_minor_formatter(NullFormatter())
            axis.minorticks_off()
    return figure, grid


def _bounds(value: float | Estimate) -> tuple[float, float, float]:
    if isinstance(value, Estimate):
        return value.value, value.low, value.high
    return (float(value),) * 3


def _check(where: str, values: NDArray[np.float64], log: bool) -> None:
    if len(values) == 0:
        raise ValueError(f"{where}: no values to draw")
    if log and (values <= 0).any():
        raise ValueError(f"{where}: {values[values <= 0][0]:g} cannot stand on a log axis")


def _note(
    axes: Any, text: str, place: tuple[float, float], offset: tuple[float, float], color: str
) -> Any:
    return axes.annotate(
        text, place, xytext=offset, textcoords="offset points", color=color, va="center"
    )


def _label_ends(
    figure: Any, axes: Any, ends: Sequence[tuple[float, float, str, str]], gap: float = 14.0
) -> None:
    """Writes names beside (x, y) points, moved apart vertically to `gap` points where too close."""
    figure.draw_without_rendering()
    heights = [float(axes.transData.transform((x, y))[1]) for x, y, _, _ in ends]
    order = np.argsort(heights)
    ideal_heights = [heights[i] - gap * rank for rank, i in enumerate(order)]
    rising_heights = _nearest_rising(ideal_heights)
    for rank, i in enumerate(order):
        x, y, name, color = ends[i]
        _note(axes, name, (x, y), (6, rising_heights[rank] + gap * rank - heights[i]), color)


def _nearest_rising(values: Sequence[float]) -> list[float]:
    """The non-decreasing numbers closest to `values` (pool adjacent violators)."""
    blocks: list[list[float]] = []
    for value in values:
        blocks.append([value, 1])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (a, n), (b, m) = blocks[-2:]
            blocks[-2:] = [[(a * n + b * m) / (n + m), n + m]]
    return [mean for mean, count in blocks for _ in range(int(count))]


def _label_points(figure: Any, axes: Any, points: Sequence[Point]) -> None:
    """Puts each name right, left, above or below its point: where it covers least."""
    from matplotlib.transforms import Bbox

    figure.draw_without_rendering()
    frame = axes.get_window_extent()
    boxes = []
    for point in points:
        _, low, high = _bounds(point.y)
        (x, bottom), (_, top) = axes.transData.transform([(point.x, low), (point.x, high)])
        boxes.append(Bbox([[x - 5, bottom - 5], [x + 5, top + 5]]))
    for own, point in enumerate(points):
        value, low, high = _bounds(point.y)
        others = boxes[:own] + boxes[own + 1 :]  # the offsets keep a name off its own point
        choices = []
        for y, offset, side in (
            (value, (9, 0), "left"),
            (value, (-9, 0), "right"),
            (high, (0, 11), "center"),
            (low, (0, -11), "center"),
        ):
            text = _note(axes, point.name, (point.x, y), offset, INK)
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


def _svg(figure: Any, description: str, caption: str) -> Markup:
    """The figure as markup for the page: its font, its colors, no ids that could collide."""
    buffer = io.StringIO()
    figure.savefig(
        buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
    )
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    drawing = svg[svg.index(">") + 1 : svg.rindex("</svg>")]
    # names of groups; nothing refers to them
    drawing = re.sub(r' id="[a-z]+[A-Za-z]*_\d+"', "", drawing)
    drawing = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", drawing)
    for color, variable in VARIABLES.items():
        drawing = drawing.replace(f": {color}", f": {variable}")
    width, height = (f"{72 * float(inches):g}" for inches in figure.get_size_inches())
    return render(
        "plot.html",
        width=width,
        height=height,
        description=description,
        drawing=Markup(drawing),
        caption=caption,
    )


def standalone(plot: Markup) -> str:
    """A plot as an SVG file of its own, with fixed colors on white: for a README."""
    svg = str(plot[plot.index("<svg") : plot.index("</svg>") + len("</svg>")])
    for color, variable in VARIABLES.items():
        svg = svg.replace(variable, color)
    style = (
        '<rect width="100%" height="100%" fill="#fff"/><style>text{font-family:sans-serif}</style>'
    )
    opening, rest = svg.split(">", 1)
    return f"{opening} {NAMESPACES}>{style}{rest}\n"
