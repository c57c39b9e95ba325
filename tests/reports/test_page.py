"""Pages: every text is escaped, no request is made, the same input gives the same bytes."""

import re

import numpy as np
from markupsafe import Markup

from research.reports.page import Sample, samples, section, write
from research.reports.plots import Point, bar_plot, line_plot, scatter_plot
from research.reports.statistics import Estimate
from research.reports.tables import Column, table
from tests.helpers.html_page import Page

ATTACK = "<script>alert('x')</script> $\\frac{ & \" onload=x"


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


def test_answers_are_marked_right_or_wrong():
    markup = samples([Sample("p", "mit", {"a": " mit\n", "b": "mit x", "c": ""})])
    assert re.findall(r"title=(\w+)>", markup) == ["right", "wrong", "wrong"]
    assert "(empty)" in markup
