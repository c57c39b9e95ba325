"""What a run's folder holds, and that a model read from it is the model that was trained."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest

from research import runs, sharding, tree
from research.checkpoint import open_checkpoint
from research.methods import LoRA, Partial
from research.sharding import MeshConfig
from research.train import train
from tests import tiny, tiny_run

LORA = LoRA(targets=(r"layers/\d+/mlp/\w+",), rank=2)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return tiny_run.world(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def tuned(world, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("tuned") / "run"
    train(world.tuning(4, method=LORA), workdir)
    return workdir


@pytest.fixture(scope="module")
def sharded(world, tmp_path_factory):
    """A whole model, trained on 2 x 2 x 2 devices."""
    workdir = tmp_path_factory.mktemp("sharded") / "run"
    train(world.tuning(2, mesh=MeshConfig(data=2, fsdp=2, tensor=2)), workdir)
    return workdir


def load(run, mesh=MeshConfig(), longest_stack=0):
    """(the model, its mesh), on all devices."""
    run = dataclasses.replace(
        run, model=dataclasses.replace(run.model, longest_stack=longest_stack)
    )
    made = mesh.make()
    with sharding.use(made, sharding.RULES):
        return runs.load_model(run, made, sharding.RULES), made


def parameters(model):
    return {n: np.asarray(a) for n, a in tree.unstack(tree.flatten(model)).items()}


def logits(model):
    return np.asarray(jax.jit(tiny.logits)(model, jax.tree.map(np.asarray, tiny.batch())))


def names(path, prefix="model/"):
    return set(open_checkpoint(path).checksums(prefix))


def test_an_adapter_run_saves_only_what_was_attached_or_trained(world, tuned):
    base, own = names(world.base), names(tuned)
    parts = {f"layers/{i}/mlp/{m}/site/lora/{p}" for i in (0, 1) for m in ("gate", "up", "down")
             for p in ("a", "b", "scale")}  # fmt: skip
    assert own == parts and not own & base
    moments = {name.split("/", 1)[0] for name in names(tuned, "optimizer/")}
    assert moments == {"layers"}  # of the layers' adapters alone
    trained = {p for p in parts if not p.endswith("scale")}
    assert {n for p in trained for n in names(tuned, "optimizer/") if n.startswith(p)} == names(
        tuned, "optimizer/"
    )
    assert names(tuned / "model") == parts and not names(tuned / "model", "optimizer/")
    origin = open_checkpoint(tuned).metadata()["base"]
    assert origin["fingerprint"] == runs.open_run(world.base).fingerprint
    assert names(tuned, "") == {f"model/{p}" for p in own} | {"step"} | {
        f"optimizer/{n}" for n in names(tuned, "optimizer/")
    }


def test_partial_tuning_saves_only_what_it_trained(world, tmp_path):
    train(world.tuning(1, method=Partial((r"layers/1/.*norm/scale",))), tmp_path / "run")
    assert names(tmp_path / "run") == {f"layers/1/{n}_norm/scale" for n in ("attention", "mlp")}
    run = runs.open_run(tmp_path / "run")
    before, after = parameters(load(runs.open_run(world.base))[0]), parameters(load(run)[0])
    changed = {name for name, leaf in before.items() if not np.array_equal(leaf, after[name])}
    assert before.keys() == after.keys() and changed == names(tmp_path / "run")


def test_full_tuning_saves_everything_and_needs_its_base_no_more(world, sharded, tmp_path):
    assert names(sharded) == names(world.base) == names(sharded / "model")
    assert open_checkpoint(sharded).metadata()["base"] is None
    assert runs.open_run(sharded).fingerprint != runs.open_run(world.base).fingerprint


def test_restoring_onto_another_mesh_and_other_stacks_gives_the_same_bits(sharded):
    run = runs.open_run(sharded)
    saved = run.saved.restore(run.saved.abstract())
    expected = {
        name.removeprefix("model/"): np.asarray(array)
        for name, array in saved.items()
        if name.startswith("model/")
    }
    other = [(MeshConfig(data=8), 0), (MeshConfig(data=1, fsdp=8), 1), (MeshConfig(tensor=2), 1)]
    for mesh, longest_stack in other:
        model, _ = load(run, mesh, longest_stack)
        assert list(model.layers) == (["0-0", "1-1"] if longest_stack else ["0-1"])
        found = parameters(model)
        assert found.keys() == expected.keys()
        for name, array in expected.items():
            assert np.array_equal(found[name], array), (mesh, name)
    kernel = tree.flatten(model)["layers/0-0/mlp/up/kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) == (1, 16, 16)  # over two, as asked


def test_the_model_read_is_the_model_that_was_trained(world, tmp_path, monkeypatch):
    """The very arrays of the last step, adapter and base, caught as they are saved."""
    caught = {}
    unstack = runs.unstack_for_saving

    def catch(arrays):
        caught.update(unstack(arrays))
        return unstack(arrays)

    monkeypatch.setattr(runs, "unstack_for_saving", catch)
    train(world.tuning(3, method=LORA, longest_stack=None) if False else world.tuning(3, method=LORA), tmp_path / "run")
