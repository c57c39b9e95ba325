"""Tables: formats, alignment, groups, and what is refused."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research.reports.statistics import Estimate, paired_difference
from research.reports.tables import Column, fitted_table, table, text_table
from tests.helpers.html_page import Page


@settings(deadline=None, max_examples=25)
@given(st.text(max_size=30), st.floats(allow_nan=True), st.integers())
def test_any_cell_gives_well_formed_markup_with_its_text(text, real, whole):
    page = Page(table([{"a": text, "b": real, "c": whole}]))
    assert page.tags.count("tr") == 2
    assert text in page.text
    assert f"{whole:,}" in page.text.replace("−", "-")


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
    line = text_table([{"run": "a\\|b\x1b[31m"}]).split("\n")[2]
    assert line == r"| a\\\|b\x1b[31m |"  # of a backslash and a bar


def test_rows_are_grouped_under_headings():
    rows = [{"r": "a", "k": "models"}, {"r": "b", "k": "models"}, {"r": "c", "k": "baselines"}]
    markup = table(rows, [Column("r", "run")], by="k")
    assert re.findall(r"<span>(.*?)</span>", markup) == ["models", "baselines"]


def test_a_column_that_no_row_has_is_refused_by_name():
    with pytest.raises(ValueError, match="no row has the column 'speed'"):
        table([{"run": "a"}], [Column("speed", "speed")])


def test_a_table_fits_the_terminal_in_blocks_that_begin_with_the_first_column():
    columns = [Column("cell", "cell"), *(Column(key, f"number {key}", "nats") for key in "abcdef")]
    estimate = Estimate(1.0, 0.5, 1.5, 3)
    rows = [
        {"cell": "lora\x1b[31m", **dict.fromkeys("abcdef", estimate)},
        {"cell": "full", "a": 2.0},
    ]
    text = fitted_table(rows, columns, 40)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 40 and "1 ±0.5" in text and "\x1b" not in text
    blocks = text.split("\n\n")
    assert len(blocks) == 3 and all(block.startswith("cell") for block in blocks)
    assert r"lora\x1b[31m" in lines[3]  # spelt out
    skewed = fitted_table([{"a": Estimate(1.0, 0.9, 1.5, 3)}], [Column("a", "a")], 40)
    assert "1 [0.9, 1.5]" in skewed
