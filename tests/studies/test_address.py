"""The address of a trial is the same in every process, on every machine and Python."""

import json
import os
import subprocess
import sys

import pytest

from research.text import tokenizer
from tests.helpers.tiny_run import ROOT

# of November 2026; others mean that the ledgers of before are lost
KNOWN = "8d698d54d8f8146e0cbd e5b4a9b3000ca287e5fd"
PROGRAM = """
import sys
from research.experiment import Experiment
from research.studies import Form, Stage, Study, axis
from research.studies.trials import Resolver

study = Study("", "", "", "config.py", forms={"lora": Form({"method": {"kind": "lora"}})},
              axes=axis("method.rank", 1, 4))
trials = Resolver(study)
print(*(trials.trial(study.stages[0], cell, None, 7).inputs for cell in trials.cells))
"""
CONFIG = """
SHAPE = dict(vocabulary=264, width=16, layers=1, heads=2, kv_heads=2, mlp_width=32)


def get_config():
    source = {"name": "texts", "kind": "jsonl", "path": "texts-{split}.jsonl"}
    return {
        "steps": 3,
        "tokenizer": "tokenizer.json",
        "model": SHAPE,
        "data": {"sources": [source], "sequence_length": 8, "batch_size": 2},
        "schedule": {"learning_rate": 0.001},
        "evaluate_split": "heldout",
    }
"""


@pytest.mark.parametrize("hash_seed", ["0", "7"])
def test_what_a_trial_depends_on_has_a_known_address(tmp_path, hash_seed):
    for split in ("train", "heldout"):
        lines = [json.dumps({"text": f"{split} {number}"}) for number in range(4)]
        (tmp_path / f"texts-{split}.jsonl").write_text("\n".join(lines) + "\n")
    tokenizer.train(["a few words"], 264).save(tmp_path / "tokenizer.json")
    (tmp_path / "config.py").write_text(CONFIG)
    environment = {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": hash_seed}
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=tmp_path,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert process.stdout.strip() == KNOWN, process.stderr
