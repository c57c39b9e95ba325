"""Runs from before fields of configs were renamed (saved_before.tar.gz): a base of four steps, and
on it a LoRA stopped at its second step of four and a finished prefix."""

import json
import shutil
import tarfile
from pathlib import Path

import pytest

from research.checkpoints import runs
from research.config import cli, schema
from research.data.sources import JsonlConfig, PreparedConfig
from research.experiment import Experiment
from research.interop import exporting
from research.objectives import Causal, Chat, Supervised
from research.training.loop import train
from research.training.metrics import read_metrics
from tests.helpers import rounding

HERE = Path(__file__).parent
ORIGINAL_FOLDER = "/tmp/graft_saved"  # where the runs were trained; their configs name it


@pytest.fixture(scope="module")
def runs_folder(tmp_path_factory):
    """The runs, with configs that name the folder where they are now."""
    folder = tmp_path_factory.mktemp("saved")
    with tarfile.open(HERE / "saved_before.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    for file in folder.rglob("*.json"):
        file.write_text(file.read_text().replace(ORIGINAL_FOLDER, str(folder)))
    return folder


def experiment(folder):
    return schema.load_json(Experiment, folder / "config.json")


def test_a_config_on_disk_is_read_under_the_new_names(runs_folder):
    base, lora, prefix = (experiment(runs_folder / name) for name in ("base", "lora", "prefix"))
    assert base.model.mlp_width == 32 and base.model.kv_heads == 2 and base.model.tie_embeddings
    assert (base.weight_decay, base.max_grad_norm, base.schedule.learning_rate) == (0.1, 0.5, 1e-2)
    assert base.weight_decay_rules == ((".*norm.*", 0.0),)
    assert base.learning_rate_rules == ((".*kernel", 1.5),)
    assert (lora.adapter_dropout, lora.max_skipped, lora.accumulation_steps) == (0.1, 3, 1)
    assert dict(lora.sharding_rules)["kv_heads"] == "tensor"
    assert prefix.method.mlp_width == 8


def test_a_config_file_with_old_names_is_read_and_overridden_with_new_ones(runs_folder, tmp_path):
    content = (runs_folder / "base" / "config.json").read_text()
    file = tmp_path / "config.py"
    file.write_text(f"import json\n\n\ndef get_config():\n    return json.loads({content!r})\n")
    config = cli.load(Experiment, str(file), ["weight_decay=0.3"])
    assert config.weight_decay == 0.3 and config.max_grad_norm == 0.5


def test_an_override_may_use_an_old_name(runs_folder, tmp_path):
    file = tmp_path / "config.py"
    content = (runs_folder / "base" / "config.json").read_text()
    file.write_text(f"import json\n\n\ndef get_config():\n    return json.loads({content!r})\n")
    old_names = ["decay=0.3", "schedule.rate=0.02", "data.sources[0].most_epochs=2.0"]
    config = cli.load(Experiment, str(file), old_names)
    assert config.weight_decay == 0.3 and config.schedule.learning_rate == 0.02
    assert config.data.sources[0].max_epochs == 2.0


def test_an_objective_with_its_settings_beside_it_is_read_as_one(runs_folder, tmp_path):
    content = json.loads((runs_folder / "lora" / "config.json").read_text())
    assert content["data"]["objective"] == "supervised"
    settings = content["data"]["objective_settings"]
    objective = experiment(runs_folder / "lora").data.objective
    assert objective == Supervised(**settings) and settings
    assert experiment(runs_folder / "base").data.objective == Causal()
    del content["data"]["objective"], content["data"]["objective_settings"]
    assert schema.build(Experiment, content).data.objective == Causal()


def test_a_source_with_the_keys_of_every_kind_is_read_as_one_of_its_own(runs_folder):
    content = json.loads((runs_folder / "lora" / "config.json").read_text())
    (source,) = content["data"]["sources"]
    assert source["kind"] == "jsonl" and source["kinds"] == []
    loaded = experiment(runs_folder / "lora").data.sources[0]
    assert loaded == JsonlConfig(source["name"], source["path"])
    assert "kinds" not in schema.to_dict(loaded)
    source["kinds"] = ["law"]
    with pytest.raises(ValueError, match="'jsonl' has no kinds: only what was prepared has them"):
        schema.build(Experiment, content)
    source |= {"kind": "prepared", "kinds": ["law"]}
    expected = PreparedConfig(source["name"], source["path"], kinds=("law",))
    assert schema.build(Experiment, content).data.sources == (expected,)
    del source["kind"], source["kinds"]
    assert schema.build(Experiment, content).data.sources[0].kind == "tfds"


def test_an_override_of_old_settings_names_the_new_key(runs_folder, tmp_path):
    content = (runs_folder / "lora" / "config.json").read_text()
    file = tmp_path / "config.py"
    file.write_text(f"import json\n\n\ndef get_config():\n    return json.loads({content!r})\n")
    with pytest.raises(ValueError, match=r"data\.objective_settings\.cut is data\.objective\.cut"):
        cli.load(Experiment, str(file), ["data.objective_settings.cut=left"])
    config = cli.load(Experiment, str(file), ["data.objective.cut=left"])
    assert config.data.objective.cut == "left"
    assert cli.load(Experiment, str(file), ["data.objective=chat"]).data.objective == Chat()


@pytest.mark.parametrize("name", ["base", "lora", "prefix"])
def test_a_saved_run_opens_to_the_same_weights(runs_folder, name):
    run = runs.open_run(runs_folder / name)
    assert run.fingerprint == FINGERPRINTS[name]
    assert run.model.mlp_width == 32


@pytest.mark.heavy
def test_a_stopped_run_goes_on_as_it_would_have(runs_folder, tmp_path):
    folder = shutil.copytree(runs_folder / "lora", tmp_path / "lora")  # it writes a config of now
    before = {row["step"]: row["loss"] for row in read_metrics(folder / "metrics.jsonl")}
    run = runs.open_run(folder / "checkpoints" / "2")
    assert run.checkpoint.step == 2
    train(experiment(folder), folder)
    after = {row["step"]: row["loss"] for row in read_metrics(folder / "metrics.jsonl")}
    # another machine rounds each step's gradients otherwise, and Adam moves every weight by them
    count = 4 * rounding.gradient_roundings(run.model, rows=8, length=32)
    rounding.assert_close(list(after.values()), list(before.values()), roundings=count)


def test_a_saved_adapter_is_exported(runs_folder, tmp_path):
    exporting.export_huggingface(runs.open_run(runs_folder / "lora"), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["intermediate_size"] == 32


FINGERPRINTS = {
    "base": "5c311c36cdf194883b80525be8b0a36f9712650de6ef7de8ff676e73c14dea12",
    "lora": "66748cc5f58e410a5acc924e0ec00f067f5dc6588183e101705fa361ad31f0af",
    "prefix": "4f88114d635fb8990a4a6c0d0d91c1eb1aa7c49a3a46774f69a84119d731fdfa",
}
