"""The quickstart on its real data, with a few steps a run."""

import dataclasses
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

from configs import shapes
from experiments.quickstart import measure, page
from experiments.quickstart.__main__ import FEW_QUESTIONS
from experiments.quickstart.stories import STORIES
from research.checkpoints import runs
from research.config import cli, schema
from research.data.builders import assets
from research.experiment import Experiment
from research.interop import importing
from research.interop.families import FAMILIES
from research.interop.family import parameter_shapes, sources
from research.models.config import ModelConfig
from research.training import cost
from research.training.loop import train
from tests.helpers import tiny_run

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
        assert quality["low"] <= quality["value"] <= quality["high"] and quality["n"] == 60
    assert 0 < rows["majority"]["quality"]["value"] < 0.5
    assert 0 < rows["tuned, LoRA"]["trainable"] < rows["tuned, full"]["trainable"] / 5
    assert rows["tuned, LoRA"]["artifact"] < rows["tuned, full"]["artifact"] / 5
    assert {row["kind"] for row in results["text"]} == set(
        ["code", "books", "encyclopedia", "forum", "web"]
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


@pytest.mark.heavy
def test_the_story_from_a_base_made_elsewhere(tmp_path):
    """The second story's own configs and tables, from a base of toy size: the real one's takes
    most of an hour."""
    world = tiny_run.world(tmp_path)
    importing.import_model(importing.open_model(tiny_folder(world, tmp_path)), tmp_path / "base")
    base = runs.open_run(tmp_path / "base")
    story = STORIES["smollm2"]
    start = [f"init_from={tmp_path}/base"]
    own = [f"tokenizer={tmp_path}/base", f"model={json.dumps(schema.to_dict(base.model))}"]
    for name, how in (("full", start), ("lora", start), ("scratch", own)):
        short = ["steps=1", "schedule.warmup=0", "data.sequence_length=256", *how]
        train(cli.load(Experiment, f"{story.tune}:{name}", short), tmp_path / name)
    results = measure.measure(tmp_path, story, FEW_QUESTIONS)
    rows = {row.name: row for row in results.table}
    assert list(rows) == ["base, made elsewhere", *ROWS[1:]]
    assert all(rows[name].quality.n == 60 for name in ROWS[1:])
    assert rows["tuned, LoRA"].labels < 4361 and rows["tuned, full"].forgetting is not None
    command = "tools/quickstart --base smollm2"
    results = dataclasses.replace(results, seconds=1.0, command=command)
    json.dumps(results.to_json())
    assert "rounded to 4 bits" in page.text(results)
    assert "the base was made elsewhere" in page.write(tmp_path, results).read_text()


def test_the_second_storys_model_is_smollm2s():
    shape = schema.build(ModelConfig, shapes.SMOLLM2_135M, "model")
    assert cost.parameter_count(shape) == 134_515_008 and shape.rotary_base == 1e5


def tiny_folder(world, path):
    """A toy Llama in a folder of transformers."""
    shape = ModelConfig(vocabulary=288, width=16, layers=1, heads=2, kv_heads=2, mlp_width=24)
    folder, family, random = path / "theirs", FAMILIES["llama"], np.random.default_rng(0)
    folder.mkdir()
    fields = family.write(shape) | {"model_type": "llama", "eos_token_id": 2}
    (folder / "config.json").write_text(json.dumps(fields))
    (folder / "tokenizer.json").write_text((world.folder / "tokenizer.json").read_text())
    arrays = sources(family, parameter_shapes(shape)).values()
    save_file(
        {s.name: random.normal(size=s.shape).astype(np.float32) for s in arrays},
        folder / "model.safetensors",
    )
    return folder
