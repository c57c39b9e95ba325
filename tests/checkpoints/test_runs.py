"""The content of a run's folder, and that the model read from it is the one that was trained."""

import contextlib
import dataclasses
import json
import shutil
import types

import numpy as np
import pytest

from research import sharding, tree
from research.checkpoints import runs
from research.checkpoints.checkpointer import open_checkpoint
from research.data import token_cache
from research.data.pipeline import Pipeline
from research.evaluation.report import loaded_model
from research.experiment import CheckpointConfig
from research.methods import LoRA, Partial
from research.objectives import Causal, Chat
from research.sharding import MeshConfig
from research.text import chat_template
from research.text import tokenizer as tokenizer_lib
from research.training.heldout_loss import heldout_loss, open_heldout
from research.training.loop import train
from tests.helpers import tiny_run

LORA = LoRA(targets=(r"layers/\d+/mlp/\w+",), rank=2)


@pytest.fixture(scope="module")
def adapter_run(world, tmp_path_factory):
    """(a run with an adapter, its base, its summary)."""
    folder = tmp_path_factory.mktemp("tuned")
    shutil.copytree(world.base, folder / "base")
    experiment = world.tuning(
        4, init_from=str(folder / "base"), method=LORA, evaluate_split="heldout"
    )
    return folder / "run", folder / "base", train(experiment, folder / "run")


@pytest.fixture(scope="module")
def full_run(world, tmp_path_factory):
    """A whole model, trained on 2 x 2 x 2 devices."""
    workdir = tmp_path_factory.mktemp("sharded") / "run"
    train(world.tuning(2, mesh=MeshConfig(data=2, fsdp=2, tensor=2)), workdir)
    return workdir


def load(run, mesh=None, max_scan_layers=0):
    """The run's model on all devices."""
    run = dataclasses.replace(
        run, model=dataclasses.replace(run.model, max_scan_layers=max_scan_layers)
    )
    device_mesh = (mesh or MeshConfig()).make()
    with sharding.mesh_context(device_mesh, sharding.RULES):
        return runs.load_model(run, device_mesh, sharding.RULES)


def parameters(model):
    return {n: np.asarray(a) for n, a in tree.unstack(tree.flatten(model)).items()}


def names(path, prefix="model/"):
    return set(open_checkpoint(path).checksums(prefix))


def test_an_adapter_run_saves_only_what_was_attached_or_trained(adapter_run):
    workdir, base, _ = adapter_run
    places = [f"layers/{i}/mlp/{m}/site/lora/" for i in (0, 1) for m in ("gate", "up", "down")]
    adapter = {place + part for place in places for part in ("a", "b", "scale")}
    assert names(workdir) == names(workdir / "model") == adapter
    assert not adapter & names(base)
    trainable = tuple(place + part for place in places for part in ("a/", "b/"))
    moments = names(workdir, "optimizer/")
    assert all(any(name.startswith(t) for name in moments) for t in trainable)
    assert all(name.startswith(trainable) for name in moments)
    everything = {f"model/{n}" for n in adapter} | {f"optimizer/{n}" for n in moments} | {"step"}
    assert names(workdir, "") == everything
    assert names(workdir / "model", "") == {f"model/{name}" for name in adapter}
    origin = open_checkpoint(workdir).metadata()["base"]
    assert origin["fingerprint"] == runs.open_run(base).fingerprint
    # the finished model, which stays when the base is trained on and its checkpoints go
    assert open_checkpoint(origin["path"]).path == open_checkpoint(base / "model").path


def test_partial_tuning_saves_only_what_it_trained(world, tmp_path):
    train(world.tuning(1, method=Partial((r"layers/1/.*norm/scale",))), tmp_path / "run")
    assert names(tmp_path / "run") == {f"layers/1/{n}_norm/scale" for n in ("attention", "mlp")}
    run = runs.open_run(tmp_path / "run")
    before, after = parameters(load(runs.open_run(world.base))), parameters(load(run))
    differences = {name for name, leaf in before.items() if not np.array_equal(leaf, after[name])}
    assert before.keys() == after.keys() and differences == names(tmp_path / "run")


def test_full_tuning_saves_everything_and_needs_its_base_no_more(world, full_run, tmp_path):
    assert names(full_run) == names(world.base) == names(full_run / "model")
    assert open_checkpoint(full_run).metadata()["base"] is None
    assert runs.open_run(full_run).fingerprint != runs.open_run(world.base).fingerprint


def test_restoring_onto_another_mesh_and_other_stacks_gives_the_same_bits(full_run):
    run = runs.open_run(full_run)
    arrays = run.checkpoint.restore(run.checkpoint.abstract())
    expected = {
        name.removeprefix("model/"): np.asarray(array)
        for name, array in arrays.items()
        if name.startswith("model/")
    }
    other = [(MeshConfig(data=8), 0), (MeshConfig(data=1, fsdp=8), 1), (MeshConfig(tensor=2), 1)]
    for mesh, max_scan_layers in other:
        model = load(run, mesh, max_scan_layers)
        assert list(model.layers) == (["0-0", "1-1"] if max_scan_layers else ["0-1"])
        actual = parameters(model)
        assert actual.keys() == expected.keys()
        for name, array in expected.items():
            assert np.array_equal(actual[name], array), (mesh, name)
    kernel = tree.flatten(model)["layers/0-0/mlp/up/kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) == (1, 16, 16)  # over two, as asked


def test_the_model_read_is_the_model_that_was_trained(adapter_run):
    """The run measured the model in its memory; the model from its files measures the same."""
    workdir, _, summary = adapter_run
    for path in (workdir, workdir / "model"):
        run = runs.open_run(path)
        data = Pipeline(run.experiment.data, run.tokenizer, token_cache.default_cache())
        with loaded_model(run) as model:
            metrics = heldout_loss(model.score, open_heldout(data, "heldout", None))
        assert metrics["heldout_loss"] == summary.metrics["heldout_loss"]
        assert metrics["heldout_bits_per_byte"] == summary.metrics["heldout_bits_per_byte"]
    with loaded_model(run.base) as model:
        other = heldout_loss(model.score, open_heldout(data, "heldout", None))
    assert other["heldout_loss"] > summary.metrics["heldout_loss"] + 0.1


@pytest.mark.heavy
def test_another_base_is_refused_and_a_base_that_moved_is_found(world, adapter_run, tmp_path):
    workdir, base, _ = adapter_run
    expected = runs.open_run(workdir).fingerprint
    other = tmp_path / "other"
    train(world.experiment(1, seed=1), other)
    base_digits, other_digits = (runs.open_run(path).fingerprint[:16] for path in (base, other))
    with pytest.raises(
        ValueError,
        match=rf"base with fingerprint {base_digits}, but {other} has {other_digits}",
    ):
        runs.open_run(workdir, base=str(other))
    new_path = tmp_path / "moved"
    base.rename(new_path)
    try:
        with pytest.raises(FileNotFoundError, match=rf"{base}/.*is gone .*--base"):
            runs.open_run(workdir)
        run = runs.open_run(workdir, base=str(new_path))
        assert run.fingerprint == expected
        longer = world.tuning(5, init_from=str(new_path), method=LORA)
        shutil.copytree(workdir, tmp_path / "run")
        assert train(longer, tmp_path / "run").finished
        assert runs.open_run(tmp_path / "run").base.path == open_checkpoint(new_path / "model").path
        with pytest.raises(ValueError, match=f"base with fingerprint {base_digits}, but {other}"):
            train(dataclasses.replace(longer, steps=6, init_from=str(other)), tmp_path / "run")
    finally:
        new_path.rename(base)


def test_an_adapter_is_not_taken_for_a_base(world, adapter_run):
    workdir, _, _ = adapter_run
    with pytest.raises(ValueError, match="lora adapters .* which the method full does not go on"):
        train(world.tuning(1, init_from=str(workdir)), workdir.parent / "second")
    assert not (workdir.parent / "second").exists()


def test_a_checkpoint_says_the_held_out_loss_of_its_own_weights_alone(world, tmp_path):
    saving = CheckpointConfig(every=1, keep_last=5, keep_best=True)
    held_out = {"evaluate_split": "heldout", "evaluate_every": 2}
    train(world.experiment(5, checkpoint=saving, **held_out), tmp_path)
    metrics = {step: open_checkpoint(tmp_path, step).metrics() for step in range(1, 6)}
    lines = [json.loads(line) for line in tiny_run.lines(tmp_path)]
    losses = {line["step"]: line["heldout_loss"] for line in lines if "heldout_loss" in line}
    assert list(losses) == [2, 4, 5] and len(set(losses.values())) == 3
    assert {step: m["heldout_loss"] for step, m in metrics.items() if m} == losses


@pytest.mark.heavy
def test_training_a_base_further_leaves_its_adapters_their_base(world, tmp_path):
    base, adapter_run = tmp_path / "base", tmp_path / "tuned"
    keep = CheckpointConfig(keep_last=1)
    train(world.experiment(2, checkpoint=keep), base)
    train(world.tuning(1, init_from=str(base), method=LORA), adapter_run)
    before = runs.open_run(adapter_run).fingerprint
    train(world.experiment(3, checkpoint=keep), base)
    assert runs.open_run(adapter_run).fingerprint == before


def test_other_content_behind_the_same_config_is_refused_on_resume(world, tmp_path):
    corpus = tmp_path / "corpus.jsonl"
    lines = "".join(f'{{"text": "{n} red leaves fall"}}\n' for n in range(40))
    corpus.write_text(lines)
    experiment = world.experiment(2)
    source = dataclasses.replace(experiment.data.sources[0], path=str(corpus))
    data = dataclasses.replace(experiment.data, sources=(source,))
    experiment = dataclasses.replace(experiment, data=data, evaluate_split=None)
    train(experiment, tmp_path / "run")
    corpus.write_text(lines.replace("red", "blue"))
    with pytest.raises(ValueError, match=f"was trained on other content of {source.name}"):
        train(dataclasses.replace(experiment, steps=3), tmp_path / "run")


def test_a_runs_tokenizer_knows_its_template_and_the_tokens_that_templates_write():
    base = tokenizer_lib.train(["some words"], 270)
    settings = {"chat_template": "t", "image_token": "<i>", "bos_token": None, "eos_token": "e"}
    files = {
        runs.TOKENIZER: base.to_json().encode(),
        chat_template.SETTINGS: json.dumps(settings).encode(),
    }
    checkpoint = types.SimpleNamespace(
        files=lambda: files, errors_in=lambda _: contextlib.nullcontext()
    )

    def read(metadata, objective=None):
        data = types.SimpleNamespace(objective=objective)
        experiment = objective and types.SimpleNamespace(data=data)
        return runs._read_tokenizer(checkpoint, base.roles, metadata, experiment)

    tokenizer, own_tokens = read({}), {"image_token": "<i>", "eos_token": "e"}
    assert tokenizer.chat_template == "t" and tokenizer.tool_template is None
    assert tokenizer.template_tokens == own_tokens == read({}, Causal()).template_tokens
    assert read({"template_tokens": {"x": "y"}}, Chat()).template_tokens == {"x": "y"}
    # what was tuned on conversations before that was recorded goes on as it was trained
    before = base.template_tokens | own_tokens
    assert read({}, Chat()).template_tokens == before == read({"method": {}}).template_tokens
    del files[chat_template.SETTINGS]  # trained from random: its roles are all there is
    assert read({}).template_tokens == base.template_tokens
