import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markupsafe import Markup

from research.reports.page import Sample, samples, section, write
from research.reports.plots import Point, bar_plot, line_plot, scatter_plot, standalone
from research.reports.statistics import Estimate, paired_difference
from research.reports.tables import Column, table, text_table

ATTACK = "<script>alert('x')</script> $\\frac{ & \" onload=x"
VOID = {"meta", "link", "use", "br", "path", "rect"}


class Page(HTMLParser):
    """Collects tags, attributes and text, and checks that every tag is closed in order."""

    def __init__(self, markup: str):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(markup)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self) -> str:
        return "".join(self.words)


def _everything(text: str) -> list[Markup]:
    """One of each part with `text` wherever a caller's words can stand."""
    rows = [{text: text, "n": 1.5, "kind": text}, {text: None, "n": Estimate(1, 0, 2, 9)}]
    curve = (np.arange(1, 30), np.linspace(3, 1, 29))
    columns = [Column(text, text, text, tip=text, group=text), Column("n", "n")]
    return [
        table(rows, columns, caption=text, by="kind"),
        line_plot({text: curve, "other": curve}, text, text, caption=text, smooth=5),
        scatter_plot([Point(text, 10, Estimate(0.5, 0.4, 0.6, 9), text)], text, text, text),
        bar_plot([text, "b"], {text: [1.0, None]}, caption=text),
        samples([Sample(text, text, {text: text})], caption=text),
    ]


def test_text_from_outside_is_escaped_everywhere(tmp_path):
    provenance = {ATTACK: ATTACK, "config": {ATTACK: [ATTACK]}}
    parts = _everything(ATTACK)
    path = write(
        tmp_path / "new" / "page.html",
        ATTACK,
        section(ATTACK, ATTACK, *parts),
        ATTACK,
        finding=ATTACK,
        provenance=provenance,
    )
    page = Page(path.read_text(encoding="utf-8"))
    assert "script" not in page.tags
    assert not any(name.startswith("on") for name, _ in page.attributes)
    assert page.text.count(ATTACK) >= 20  # shown as written, dollars and backslashes too
    for part in parts:
        assert ATTACK in Page(part).text


@settings(deadline=None, max_examples=25)
@given(st.text(max_size=30), st.floats(allow_nan=True), st.integers())
def test_any_cell_gives_well_formed_markup_with_its_text(text, real, whole):
    page = Page(table([{"a": text, "b": real, "c": whole}]))
    assert page.tags.count("tr") == 2
    assert text in page.text
    assert f"{whole:,}" in page.text.replace("−", "-")


def test_page_makes_no_request_and_runs_no_script(tmp_path):
    path = write(tmp_path / "page.html", "Title", *_everything("name"), finding="Found.")
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert "http" not in text.replace("http-equiv", "")
    assert not re.search(r"@import|url\((?!#)", text)
    links = [v for k, v in page.attributes if k in {"src", "href", "xlink:href"}]
    assert all(link == "data:," or link.startswith("#") for link in links)
    assert "default-src 'none'" in text
    assert list(tmp_path.iterdir()) == [path]  # no partial file stays behind
    # Every reference inside the plots has its target, and no id is taken by two different things.
    targets = {v for k, v in page.attributes if k == "id"}
    references = {link[1:] for link in links if link.startswith("#")}
    references |= set(re.findall(r"url\(#(\w+)\)", text))
    assert references <= targets


def test_the_same_input_gives_the_same_bytes(tmp_path):
    first, second = (write(tmp_path / n, "T", *_everything("x")) for n in ("a.html", "b.html"))
    assert first.read_bytes() == second.read_bytes()


def test_table_formats_units_missing_values_and_paired_differences():
    a, b = np.arange(40) % 10 < 8, np.arange(40) % 10 < 6
    rows = [
        {"run": "one", "params": 4_213_248, "share": 0.0233, "time": 12_345.6, "quality": None},
        {
            "run": "two",
            "params": 12,
            "share": 1.0,
            "time": 0.25,
            "quality": paired_difference(a, b),
        },
    ]
    columns = [
        Column("run", "run"),
        Column("params", "parameters", format="si"),
        Column("share", "share", "%", scale=100, format=".2f"),
        Column("time", "time", "s"),
        Column("quality", "difference", "points", scale=100, format="+.1f"),
    ]
    cells = re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", table(rows, columns).split("<tbody>")[1])
    assert cells[:4] == ["one", "4.21M", "2.33", "12,346"]
    assert "–" in cells[4]
    assert cells[5:9] == ["two", "12", "100.00", "0.25"]
    assert ">+20.0 " in cells[9] and 'title="p = 0.0078"' in cells[9]  # 8 of 8: 2 / 2**8
    header = Page(table(rows, columns)).text
    assert "share (%)" in header and "time (s)" in header


def test_text_table_is_aligned_markdown():
    rows = [{"run": "a|b", "n": 1}, {"run": "longer", "n": 12_000}, {"run": "c\nd", "n": None}]
    lines = text_table(rows).split("\n")
    assert lines == [
        "| run    |      n |",
        "| ------ | -----: |",
        "| a\\|b   |      1 |",
        "| longer | 12,000 |",
        "| c d    |      – |",
    ]


def test_rows_are_grouped_under_headings():
    rows = [{"r": "a", "k": "models"}, {"r": "b", "k": "models"}, {"r": "c", "k": "baselines"}]
    markup = table(rows, [Column("r", "run")], by="k")
    assert re.findall(r"<span>(.*?)</span>", markup) == ["models", "baselines"]


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
    heights = []
    for name in ("first", "second", "third"):
        (label,) = re.findall(rf"<text ([^>]*)>{name}</text>", markup)
        heights.append(float(re.findall(r"(?:translate\(\S+ |y=\")(-?[\d.]+)", label)[0]))
    assert np.diff(sorted(heights)).min() > 12


def test_answers_are_marked_right_or_wrong():
    markup = samples([Sample("p", "mit", {"a": " mit\n", "b": "mit x", "c": ""})])
    assert re.findall(r"title=(\w+)>", markup) == ["right", "wrong", "wrong"]
    assert "(empty)" in markup


def test_what_cannot_be_drawn_is_refused_by_name():
    with pytest.raises(ValueError, match="no row has the column 'speed'"):
        table([{"run": "a"}], [Column("speed", "speed")])
    with pytest.raises(ValueError, match="point 'base', x: 0 cannot stand on a log axis"):
        scatter_plot([Point("base", 0, 0.5)], "x", "y")
    with pytest.raises(ValueError, match="series 'a': x has shape"):
        line_plot({"a": ([1, 2], [1])}, "x", "y")
    with pytest.raises(ValueError, match="panel 'time': 1 values for 2 names"):
        bar_plot(["a", "b"], {"time": [1.0]})
    with pytest.raises(ValueError, match="at least one series"):
        line_plot({}, "x", "y")


def test_a_plot_of_its_own_is_a_whole_svg_file_with_fixed_colours():
    text = standalone(scatter_plot([Point("a <b>", 10.0, 0.5, "kind")], "x", "y"))
    assert ElementTree.fromstring(text).tag.endswith("svg") and "var(--" not in text
