"""Plots: where points, intervals and names stand, and what is refused."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from research.reports.canvas import standalone
from research.reports.plots import Point, bar_plot, line_plot, scatter_plot
from research.reports.statistics import Estimate
from tests.helpers.html_page import Page


def test_scatter_places_points_on_a_log_axis_with_their_intervals():
    points = [
        Point(str(x), x, Estimate(y, y - 0.1, y + 0.2, 10))
        for x, y in ((10, 0.5), (100, 0.5), (1000, 0.7))
    ]
    markup = scatter_plot(points, "parameters", "accuracy")
    marks = re.findall(r'<use [^>]*x="(\S+?)" y="(\S+?)" style="fill: var\(--series0\)', markup)
    (x, y) = np.array(marks, float).T
    assert len(x) == 3
    assert x[1] - x[0] == pytest.approx(x[2] - x[1])  # equal ratios, equal steps
    assert y[0] == y[1] > y[2]
    # One vertical line per interval, reaching .1 below and .2 above its point.
    line = r'd="M (\S+) (\S+)\s+L (\S+) (\S+)\s+"[^>]*stroke: var\(--series0\)'
    low_x, low, high_x, high = np.array(re.findall(line, markup), float).T
    # written with six digits
    np.testing.assert_allclose([low_x, high_x], [x, x], atol=1e-3)
    scale = (y[0] - y[2]) / 0.2
    np.testing.assert_allclose(
        [low - y, y - high],
        [[0.1 * scale] * 3, [0.2 * scale] * 3],
        rtol=1e-4,  # as above
    )
    for name in ("10", "100", "1000", "parameters", "accuracy"):
        assert name in Page(markup).text


def test_names_at_the_ends_of_equal_curves_do_not_overlap():
    curve = (np.arange(10), np.ones(10))
    markup = line_plot({"first": curve, "second": curve, "third": curve}, "step", "loss")
    heights = [label_height(markup, name) for name in ("first", "second", "third")]
    assert np.diff(sorted(heights)).min() > 12


def label_height(markup, name):
    (label,) = re.findall(rf"<text ([^>]*)>{name}</text>", markup)
    return float(re.findall(r"(?:translate\(\S+ |y=\")(-?[\d.]+)", label)[0])


def test_a_name_covers_no_point_beside_its_own():
    """With neighbours on both sides at one height, it goes above or below."""
    values = {"neighbour": 1e5, "between": 1e6, "other neighbour": 2e6, "far": 1.0}
    points = [Point(name, x, Estimate(0.6, 0.55, 0.65, 9)) for name, x in values.items()]
    markup = scatter_plot(points, "parameters", "accuracy")
    assert abs(label_height(markup, "between") - label_height(markup, "neighbour")) > 12


def test_a_plot_of_its_own_is_a_whole_svg_file_with_fixed_colors():
    text = standalone(scatter_plot([Point("a <b>", 10.0, 0.5, "kind")], "x", "y"))
    assert ElementTree.fromstring(text).tag.endswith("svg") and "var(--" not in text


def test_what_cannot_be_drawn_is_refused_by_name():
    with pytest.raises(ValueError, match="point 'base', x: 0 cannot stand on a log axis"):
        scatter_plot([Point("base", 0, 0.5)], "x", "y")
    with pytest.raises(ValueError, match="series 'a': x has shape"):
        line_plot({"a": ([1, 2], [1])}, "x", "y")
    with pytest.raises(ValueError, match="panel 'time': 1 values for 2 names"):
        bar_plot(["a", "b"], {"time": [1.0]})
    with pytest.raises(ValueError, match="at least one series"):
        line_plot({}, "x", "y")
