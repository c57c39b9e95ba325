"""Where plots are drawn: one calm style, labels that keep apart, and the files that come out.

Colors leave here as the page's style-sheet variables and text as text, so a plot in a page follows
its font and color scheme; files of their own have fixed colors on white. Labels are data, never
mathematics or markup: they are escaped. The same plot is the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

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


def style() -> Any:
    """A context in which plots look alike, whatever this machine's own settings say."""
    # Matplotlib takes about a second to import: only programs that draw pay for it.
    from matplotlib import style as styles

    return styles.context(["default", STYLE])


def make_figure(
    height: float,
    titles: Sequence[str],
    log_x: bool,
    log_y: bool,
    x: str,
    y: str,
    width: float = 13.5,
) -> tuple[Any, list[Any]]:
    """A figure of `width` by `height` inches and one axes object per title, left to right."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    grid = list(figure.subplots(1, len(titles), squeeze=False)[0])
    for axes, title in zip(grid, titles, strict=True):
        axes.set_title(title, loc="left", fontsize=12, color=INK)
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        set_scale(axes.xaxis, log_x)
        set_scale(axes.yaxis, log_y)
    return figure, grid


def set_scale(axis: Any, log: bool) -> None:
    """A linear or logarithmic axis whose numbers are written as in tables."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axis.axes.set(**{f"{axis.axis_name}scale": "log" if log else "linear"})
    if log:
        axis.set_major_locator(_log_locator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: format_si(value)))
    axis.set_minor_formatter(NullFormatter())
    axis.axes.minorticks_off()


def _log_locator() -> Any:
    """Powers of ten; with 2 and 5 in between where there are fewer than three of them."""
    from matplotlib.ticker import LogLocator

    class Locator(LogLocator):
        def tick_values(self, vmin: float, vmax: float) -> Any:
            is_long = vmin > 0 and vmax > 300 * vmin
            self.set_params(subs=(1.0,) if is_long else (1.0, 2.0, 5.0))
            return super().tick_values(vmin, vmax)

    return Locator(numticks=9)


def bounds(value: float | Estimate) -> tuple[float, float, float]:
    if isinstance(value, Estimate):
        return value.value, value.low, value.high
    return (float(value),) * 3


def check_drawable(where: str, values: NDArray[np.float64], log: bool) -> None:
    if len(values) == 0:
        raise ValueError(f"{where}: no values to draw")
    if log and (values <= 0).any():
        raise ValueError(f"{where}: {values[values <= 0][0]:g} cannot stand on a log axis")


def note(
    axes: Any, text: str, place: tuple[float, float], offset: tuple[float, float], color: str
) -> Any:
    return axes.annotate(
        text, place, xytext=offset, textcoords="offset points", color=color, va="center"
    )


def label_ends(
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
        note(axes, name, (x, y), (6, rising_heights[rank] + gap * rank - heights[i]), color)


def _nearest_rising(values: Sequence[float]) -> list[float]:
    """The non-decreasing numbers closest to `values` (pool adjacent violators)."""
    blocks: list[list[float]] = []
    for value in values:
        blocks.append([value, 1])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (a, n), (b, m) = blocks[-2:]
            blocks[-2:] = [[(a * n + b * m) / (n + m), n + m]]
    return [mean for mean, count in blocks for _ in range(int(count))]


def to_page(figure: Any, description: str, caption: str) -> Markup:
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
    drawing = _name_shapes_as_written(drawing)
    width, height = (f"{72 * float(inches):g}" for inches in figure.get_size_inches())
    return render(
        "plot.html",
        width=width,
        height=height,
        description=description,
        drawing=Markup(drawing),
        caption=caption,
    )


def _name_shapes_as_written(drawing: str) -> str:
    """Matplotlib names clips and marks by floats in full, whose last bits are the processor's;
    this by what is written of them, so that the same plot is the same bytes on all."""
    shapes = re.findall(
        r'<(?:clipPath|path) id="([mp]\w{10})"(.*?)</(?:clipPath|defs)>', drawing, re.S
    )
    for name, shape in shapes:
        digest = hashlib.sha256(shape.encode()).hexdigest()
        drawing = drawing.replace(name, f"{name[0]}{digest[:10]}")
    return drawing


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


def to_png(figure: Any) -> bytes:
    """The figure as a PNG file on white, of twice the pixels that it is shown with; a figure of
    many lines has as many, or its file were larger than its page."""
    buffer = io.BytesIO()
    # without the version of Matplotlib that it would name
    dpi = 144 if figure.get_figheight() < 20 else 72  # inches
    figure.savefig(buffer, format="png", dpi=dpi, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()
