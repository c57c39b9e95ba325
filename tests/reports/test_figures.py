"""Figures: the same bytes in every process, marks that say what they are, and what is refused."""

import hashlib
import math
import subprocess
import sys
from xml.etree import ElementTree

import pytest

from research.reports import canvas, figures
from research.reports.figures import (
    Curve,
    Panel,
    cross_plot,
    curve_plot,
    dot_plot,
    small_multiples,
    spans_decade,
)
from research.reports.statistics import Estimate
from tests.helpers.html_page import Page
from tests.helpers.tiny_run import ROOT

CURVES = [
    Curve("lora", [1e-3, 3e-3, 9e-3], [Estimate(1.2, 1.1, 1.3, 3), 1.0, math.inf], best=3e-3),
    Curve("full", [1e-4, 3e-4], [2.0, 1.5], best=3e-4, edges=[3e-4]),
]
SAME = """
from tests.reports.test_figures import draw
import hashlib
print(*(hashlib.sha256(content).hexdigest() for content in draw()))
"""


def draw():
    drawings = [
        dot_plot(["a <b>", "$x$"], {"loss (nats)": [Estimate(1, 0.5, 2, 3), None]}),
        curve_plot([Panel(CURVES, "loss")], "learning_rate"),
        small_multiples({"lora": CURVES[:1], "full": CURVES[1:]}, "learning_rate", "loss"),
        cross_plot({"lora": (0.1, Estimate(50, 40, 60, 3))}, "forgetting", "right (%)"),
    ]
    return [content for each in drawings for content in (each.png, each.svg.encode())]


@pytest.mark.heavy
def test_a_figure_is_the_same_bytes_in_another_process_with_other_settings(tmp_path):
    (tmp_path / "matplotlibrc").write_text("font.size: 30\nsavefig.dpi: 30\n")
    process = subprocess.run(
        [sys.executable, "-c", SAME],
        cwd=ROOT,
        env={"PYTHONHASHSEED": "7", "MATPLOTLIBRC": str(tmp_path), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert process.stdout.split() == [hashlib.sha256(content).hexdigest() for content in draw()]


def test_a_plot_is_the_same_bytes_whatever_the_last_bits_of_its_layout():
    """They are the processor's."""

    def draw_clipped(width):
        figure, (axes,) = canvas.make_figure(3.0, ["loss"], False, False, "x", "y", width)
        axes.plot([0, 1], [0, 1])
        return canvas.to_page(figure, "a line", "")

    plot = draw_clipped(7.0)
    assert "clip-path" in plot and draw_clipped(math.nextafter(7.0, 8.0)) == plot


def test_files_are_whole_and_white_and_their_labels_are_data():
    drawing = dot_plot(["a <b>", "$x$"], {"loss (nats)": [1.0, 2.0]}, kinds=["x", "reference"])
    assert ElementTree.fromstring(drawing.svg).tag.endswith("svg") and 'fill="#fff"' in drawing.svg
    assert drawing.png.startswith(b"\x89PNG") and b"Matplotlib" not in drawing.png
    for name in ("a <b>", "$x$", "loss (nats)"):
        assert name in Page(drawing.page).text


def test_an_edge_is_named_and_each_curve_too():
    text = Page(curve_plot([Panel(CURVES, "loss")], "learning_rate").page).text
    assert text.count("edge") == 1 and {"lora", "full", "learning_rate"} <= set(text.split())


def test_an_axis_is_logarithmic_where_positive_numbers_span_a_decade():
    assert spans_decade([1, 10]) and not spans_decade([1, 9.9]) and not spans_decade([0, 10])
    assert not spans_decade([Estimate(1, -0.1, 2, 3), 100])
    # an interval that is long is no reason
    assert not spans_decade([Estimate(1, 0.01, 20, 3), 2.0])


def test_nothing_to_draw_is_refused():
    with pytest.raises(ValueError, match="at least one name"):
        dot_plot([], {})
    with pytest.raises(ValueError, match="panel 'loss': 1 values for 2 names"):
        dot_plot(["a", "b"], {"loss": [1.0]})
    with pytest.raises(ValueError, match="one panel with a curve"):
        curve_plot([Panel([], "loss")], "x")


def test_of_many_points_the_kinds_are_named_each_with_a_mark_of_its_own():
    names = [f"cell {number}" for number in range(48)]
    kinds = [f"form {number % 8}" for number in range(48)]
    points = {name: (float(number), float(number % 5)) for number, name in enumerate(names)}
    many = cross_plot(points, "x", "y", kinds).svg
    assert ">form 7<" in many and ">cell 5<" not in many
    few = cross_plot(dict(list(points.items())[:5]), "x", "y", kinds[:5]).svg
    assert ">cell 3<" in few and ">form 3<" not in few
    marks = [figures._mark(sorted(set(kinds)), kinds, number) for number in range(8)]
    assert len(set(marks)) == 8
