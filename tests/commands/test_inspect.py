"""graft inspect as a user calls it."""

import dataclasses
import json
import os
import subprocess
import sys

import pytest

from research.data.sources import JsonlConfig
from tests.helpers import tiny_run


def call(*arguments, status=0, **environment):
    process = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "research.cli", "inspect", *map(str, arguments)],
        cwd=tiny_run.ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )
    assert process.returncode == status, process.stderr + process.stdout
    assert "Traceback" not in process.stderr, process.stderr
    return process.stdout if status in (0, 1) and process.stdout else process.stderr


@pytest.mark.heavy
def test_a_config_is_shown_written_as_a_page_and_refused_where_training_would(world, tmp_path):
    config = tiny_run.config_file(tmp_path, world.tuning(3))
    page, content_file = tmp_path / "new" / "page.html", tmp_path / "other" / "content.json"
    options = ("--rows", 3, "--split", "heldout", "--html", page, "--json", content_file)
    output = call("--config", config, *options)
    assert output.count("step 0, row ") == 3 and "⟦" in output and "\x1b" not in output
    assert "checks: training would begin with this data" in output
    assert page.read_text().startswith("<!doctype html>")
    content = json.loads(content_file.read_text())
    assert [one["split"] for one in content["sources"]] == ["train", "heldout"]
    assert len(content["rows"]) == 3 and content["faults"] == []

    lines = (world.folder / "questions-train.jsonl").read_text()
    (tmp_path / "made-train.jsonl").write_text(lines)
    (tmp_path / "made-heldout.jsonl").write_text(lines.splitlines()[5])
    source = JsonlConfig("made", str(tmp_path / "made-{split}.jsonl"))
    data = dataclasses.replace(world.questions(), sources=(source,))
    config = tiny_run.config_file(tmp_path, world.tuning(3, data=data))
    output = call("--config", config, "--row", 4, "--split", "heldout", status=1)
    assert "made:train, row 4;" in output and "row 0 is row 5 of made:train" in output
    output = call("--config", config, "--config.data.sources[0].path=nowhere.jsonl", status=1)
    assert output.startswith("error: Source 'made': there is no file nowhere.jsonl")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--rows", -3), "--rows is a number of rows from 0 on, not -3"),
        (("--html", "."), "--html . is a folder: name a file in it"),
        (("--json", "tests"), "--json tests is a folder: name a file in it"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_read(options, message):
    assert message in call("--config", "nowhere.py", *options, status=2)


@pytest.mark.heavy
def test_a_runs_folder_serves_as_its_config(world):
    output = call(
        "--run", world.base, "--find", "leaves fall", "--rows", 1, "--tokens", "--no-near"
    )
    assert "leaves fall" in output.replace("│", "") and "objective causal" in output
    assert "give one of --config and --run" in call(status=2)
    assert "nothing of it can be set" in call("--run", world.base, "--config.steps=3", status=2)
