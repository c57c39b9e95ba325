"""The index of a folder of studies: README.md with a line for each, made from what they committed.

A study's line is its claim, its verdicts (`verdicts.json`) and its trials (`ledger.parquet`), as
`graft study report` wrote them. A folder that is a program instead has the first line of its page.
"""

from __future__ import annotations

import ast
import json
from collections import Counter
from pathlib import Path
from typing import Any

from pyarrow import parquet
from tqdm import tqdm

from research.reports.tables import Column, text_table
from research.runtime import files
from research.studies import report
from research.studies.study import FILE, load

README = "README.md"
_COLUMNS = (
    Column("study", "study"),
    Column("claim", "claim"),
    Column("verdicts", "verdicts"),
    Column("trials", "trials"),
    Column("time", "device time"),
)
_HEAD = """\
# Studies

What each folder claims or measures, and what came of it. Written by `graft study index {name}` from
the results in the folders.

"""


def write(folder: Path) -> Path:
    """Writes the index of a folder; the same bytes from the same studies.

    Raises:
      FileNotFoundError: the folder has no studies.
      ValueError: a study's file is no study.
    """
    lines = [line for path in sorted(folder.iterdir()) if (line := _line(path)) is not None]
    if not lines:
        raise FileNotFoundError(f"{folder} has no folder with a {FILE}")
    text = _HEAD.format(name=folder.name) + text_table(lines, _COLUMNS)
    files.atomic_write(folder / README, text + "\n")
    return folder / README


def _line(path: Path) -> dict[str, Any] | None:
    pages = (README, "table.md", FILE, "__main__.py")
    page = next((name for name in pages if (path / name).is_file()), "")
    link = f"[{path.name}]({path.name}/{page})"
    if (path / FILE).is_file():
        return {"study": link, "claim": load(path).claim, **_results(path)}
    if (path / "__main__.py").is_file():
        parsed = ast.parse((path / "__main__.py").read_text(encoding="utf-8"))
        first_line = (ast.get_docstring(parsed) or "").partition("\n")[0]
        return {"study": link, "claim": first_line.rstrip(".")}
    return None


def _results(path: Path) -> dict[str, Any]:
    """What a study has committed; empty before its first report."""
    if not (path / report.VERDICTS).is_file():
        return {"verdicts": "not run"}
    content = json.loads((path / report.VERDICTS).read_text(encoding="utf-8"))
    counts = Counter(verdict["verdict"] for verdict in content["verdicts"])
    words = ("supported", "refuted", "inconclusive", "none")
    text = ", ".join(f"{counts[word]} {word}" for word in words if counts[word])
    text = text.replace("none", "without a verdict")
    rows = parquet.read_table(path / report.LEDGER).to_pylist()
    seconds = sum(row.get("seconds") or 0.0 for row in rows)
    return {
        "verdicts": text if content["finished"] else "not finished",
        "trials": len(rows),
        "time": tqdm.format_interval(seconds),
    }
