"""The table of 8B on every TPU: its commands, and its committed numbers."""

import json

from experiments.topologies.__main__ import FORMS, HERE, table
from research.config import cli
from research.experiment import Experiment


def test_the_committed_table_is_that_of_the_committed_numbers_and_lacks_none():
    results = json.loads((HERE / "results.json").read_text(encoding="utf-8"))
    assert set(results) == {
        f"{form} on {where}" for form in FORMS for where in FORMS[form].topologies
    }
    assert (HERE / "table.md").read_text(encoding="utf-8") == table(results)


def test_the_marks_that_are_reached_stay_reached():
    results = json.loads((HERE / "results.json").read_text(encoding="utf-8"))
    gib = {name: cell["argument_gib"] + cell["temp_gib"] for name, cell in results.items()}
    assert gib["full on v5p:4x4x4"] < 4.5 and gib["full on v5e:16x16"] < 3.4
    # its mark of 8.5 is not reached (docs/results/tpu.md); it stays below MaxText's 9.35
    assert gib["full, 4 rows on v5p:4x4x4"] < 9.01
    long = results["full, rows of 131,072 on v5p:4x4x4"]
    assert long["fits"] and long["sequence_length"] == 131_072 and long["mesh"]["sequence"] == 16
    assert results["LoRA on v5e:2x4"]["fits"] and results["QLoRA on v5e:1x1"]["fits"]


def test_every_form_is_a_config_that_loads():
    for form in FORMS.values():
        overrides = [flag.removeprefix("--config.") for flag in form.flags]
        cli.load(Experiment, "configs/pretrain/llama3_8b.py", overrides)
