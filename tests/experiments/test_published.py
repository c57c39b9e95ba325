"""The bounds beside what others reached."""

import pytest

from experiments.published.__main__ import COLUMNS, TABLE, rows
from research.reports.tables import text_table


@pytest.mark.heavy
def test_no_published_run_passes_its_bound_and_the_committed_table_is_what_is_computed():
    table_rows = rows()
    assert all(0.4 < row["share"] < 1 for row in table_rows)
    assert sum(row["share"] > 0.6 for row in table_rows) >= 3
    assert TABLE.read_text(encoding="utf-8") == text_table(table_rows, COLUMNS).rstrip("\n") + "\n"
