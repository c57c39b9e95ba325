"""The quickstart's line, on its real data, with a few steps a run."""

import json
import os
import re
import subprocess
import sys

import pytest

from research.data import assets

ROWS = [
    "pretraining",
    "base, zero-shot",
    "base, few-shot",
    "tuned, full",
    "tuned, LoRA",
    "from scratch",
    "majority",
    "TF-IDF + linear",
    "nearest neighbour",
]


def run(folder, *arguments):
    environment = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "GRAFT_DATA")}
    command = [sys.executable, "-m", "experiments.quickstart", "--workdir", str(folder)]
    return subprocess.run(
        [*command, *arguments], env=environment, capture_output=True, text=True, timeout=1200
    )


@pytest.mark.heavy
def test_the_whole_line_runs_once_and_is_not_run_twice(tmp_path):
    folder = tmp_path / "quickstart"
    first = run(folder, "--steps", "3")
    assert first.returncode == 0, first.stderr[-3000:]
    results = json.loads((folder / "results.json").read_text())
    rows = {row["name"]: row for row in results["table"]}
    assert list(rows) == ROWS
    for name in ROWS[1:]:
        quality = rows[name]["quality"]
        assert quality["low"] <= quality["value"] <= quality["high"] and quality["n"] == 718
    assert rows["majority"]["quality"]["value"] == pytest.approx(106 / 718)
    assert 0 < rows["tuned, LoRA"]["trainable"] < rows["tuned, full"]["trainable"] / 5
    assert rows["tuned, LoRA"]["artifact"] < rows["tuned, full"]["artifact"] / 5
    assert {row["kind"] for row in results["text"]} == set(
        "code books encyclopedia forum web".split()
    )
    page = (folder / "report.html").read_text()
    assert not re.search(r"(src|href)=\"?https?:", page) and page.count("<svg") == 4
    for name in ROWS:
        assert name in page and name in first.stdout

    second = run(folder, "--steps", "3")
    assert second.returncode == 0 and second.stdout.count("is finished: 3 of 3 steps") == 4


def test_every_asset_is_pinned():
    for asset in assets.ASSETS.values():
        assert re.fullmatch(r"[0-9a-f]{64}", asset.sha256) and asset.version and asset.licence
