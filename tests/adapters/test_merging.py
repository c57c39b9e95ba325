"""Merging, with its certificate, and what undoes it."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import methods, sharding, tree
from research.adapters import merging, quantizing
from research.checkpoints import runs
from research.checkpoints.checkpoint import CheckpointError
from research.interop import model_card
from research.methods import IA3, Bottleneck, Full, LoRA, Partial, Several, VeRA
from research.models import quantization
from research.sharding import MeshConfig
from research.training.loop import train
from tests.adapters.saved import read_weights
from tests.helpers import rounding, tiny, tiny_run
from tests.methods.cases import CASES, MERGED

# the base's embedding and head share a table, into which nothing can be merged
METHODS = {name: CASES[name].method for name in MERGED if name != "lora-ends"}
METHODS["several"] = Several(of=(LoRA(rank=2), IA3()))


@pytest.fixture(scope="module")
def bases(world, tmp_path_factory):
    """Runs of the base as it is, and quantised."""
    folder = tmp_path_factory.mktemp("bases")
    quantizing.store(runs.open_run(world.base), folder / "nf4", quantization.PRESETS["nf4"])
    return {"float32": world.base, "nf4": folder / "nf4"}


def logits_difference(adapter, merged):
    """The largest difference of two models' logits, of the probe's tokens."""
    models = [
        runs.load_model(run, MeshConfig().make(jax.devices()[:1]), sharding.RULES)
        for run in (adapter, runs.open_run(merged))
    ]
    size = merging.PROBE
    tokens = jax.random.randint(jax.random.key(0), size, 0, adapter.model.vocabulary)
    at = jnp.broadcast_to(jnp.arange(size[1]), size)

    @jax.jit
    def logits(model):
        return model.logits(model.hidden(tokens, jnp.ones_like(at), at)[0])

    first, second = (np.asarray(logits(model)) for model in models)
    return float(np.abs(first - second).max())


@pytest.mark.parametrize(
    ("name", "base"),
    [
        pytest.param(name, "float32", marks=[] if name == "lora" else [pytest.mark.heavy])
        for name in METHODS
    ]
    # plain, on norms, on a part of the base, and beside each other
    + [
        pytest.param(name, "nf4", marks=pytest.mark.heavy)
        for name in ("lora", "dora", "pissa", "several")
    ],
)
def test_a_merged_model_certifies_itself_and_unmerging_gives_the_base_back(
    bases, name, base, tmp_path
):
    source = runs.open_run(bases[base])
    adapter = runs.open_run(tiny_run.adapter(bases[base], METHODS[name], tmp_path / "adapter"))
    before = read_weights(bases[base])
    certificate = merging.merge(adapter, tmp_path / "merged")
    assert (
        json.loads((tmp_path / "merged" / "certificate.json").read_text()) == certificate.to_json()
    )
    merged = runs.open_run(tmp_path / "merged")
    plain = {n: merging.Merged(source)(n) for n in merged.checksums()}
    added = merged.read(*plain)
    # sums have terms as many times larger as the adapter made the weights
    growth = max(np.abs(added[n]).max() / np.abs(plain[n]).max() for n in plain)
    scale = max(1, growth) * certificate.largest_output
    limit = rounding.bound(tiny_run.ROUNDINGS, scale)
    assert certificate.largest_difference <= limit
    # both are the largest of some thousand roundings, in two programs
    difference = logits_difference(adapter, tmp_path / "merged")
    assert difference / 4 <= certificate.largest_difference <= max(4 * difference, limit / 100)
    assert certificate.base.fingerprint_before == certificate.base.fingerprint_after
    assert certificate.base.fingerprint_before == source.fingerprint
    assert ("dequantised" in certificate.merged_in) == (base == "nf4")
    after = read_weights(bases[base])
    assert all(np.array_equal(before[n], after[n]) for n in before)

    assert merged.base is None and merged.model == source.model.full_precision
    largest_change = max(np.abs(array - plain[n]).max() for n, array in added.items())
    assert largest_change > 1e-2  # far above rounding
    merging.unmerge(merged, adapter, tmp_path / "apart")
    apart = read_weights(tmp_path / "apart")
    assert apart.keys() == plain.keys()
    for n in plain:
        # a product over a rank of 8 is added and taken off again, each scaled, IA3's too
        rounding.assert_close(apart[n], plain[n], roundings=2 * 8, err_msg=n)


@pytest.mark.heavy
def test_a_merged_model_is_asked_and_described_as_what_was_merged(world, tmp_path):
    train(world.tuning(2, method=LoRA(rank=2)), tmp_path / "run")
    run = runs.open_run(tmp_path / "run")
    merging.merge(run, tmp_path / "merged")
    merged = runs.open_run(tmp_path / "merged")
    assert merged.method == Full() and merged.experiment == run.experiment
    card = model_card.write(merged, "hf", "out")
    assert "Method: lora" in card and "2 of 2 steps" in card and '`"Q: {prompt}' in card


def broken(world, tmp_path, value, name="layers/1/mlp/up/site/lora/b", method=None):
    """An adapter with one number replaced."""
    path = tiny_run.adapter(world.base, method or LoRA(rank=2), tmp_path / "whole")
    run = runs.open_run(path)
    own = run.checkpoint.checksums("model/")
    arrays = jax.tree.map(jnp.asarray, run.read(*own))
    arrays[name] = arrays[name].at[(0,) * arrays[name].ndim].set(value)
    runs.write(tmp_path / "broken", run, arrays, run.model, method=run.method, base=run.base)
    return runs.open_run(tmp_path / "broken")


def test_numbers_that_are_not_finite_are_not_merged(world, tmp_path):
    with pytest.raises(ValueError, match=r"not finite|differ by nan"):
        merging.merge(broken(world, tmp_path, np.nan), tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_a_merged_model_that_answers_otherwise_is_not_written(world, tmp_path, monkeypatch):
    adapter = runs.open_run(tiny_run.adapter(world.base, LoRA(rank=2), tmp_path / "adapter"))
    fold = merging._fold

    def wrong(part, shared, adapters):
        arrays, residuals = fold(part, shared, adapters)
        return {n: 1.01 * a if n.endswith("up/kernel") else a for n, a in arrays.items()}, residuals

    monkeypatch.setattr(merging, "_fold", wrong)
    with pytest.raises(ValueError, match="the merged model's outputs differ by"):
        merging.merge(adapter, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_a_base_whose_weights_have_changed_is_certified_for_nothing(world, tmp_path):
    shutil.copytree(world.base, tmp_path / "base")
    path = tiny_run.adapter(tmp_path / "base", LoRA(rank=2), tmp_path / "adapter")
    adapter = runs.open_run(path)
    for path in (tmp_path / "base" / "model").glob("*/state/**/d/*"):
        content, middle = path.read_bytes(), path.stat().st_size // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    with pytest.raises(CheckpointError, match="base/model"):
        merging.merge(adapter, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_a_base_that_is_replaced_while_it_is_merged_is_no_base_of_the_merged(world, tmp_path):
    like, arrays = runs.open_run(world.base), read_weights(world.base)
    for name, times in (("base", 1), ("other", 2)):
        scaled_arrays = {n: jnp.asarray(array) * times for n, array in arrays.items()}
        runs.write(tmp_path / name, like, scaled_arrays, like.model)
    adapter = tiny_run.adapter(tmp_path / "base", LoRA(rank=2), tmp_path / "adapter")
    names = []

    def replace(name):
        names.append(name)
        if len(names) == len(arrays):
            shutil.rmtree(tmp_path / "base")
            shutil.copytree(tmp_path / "other", tmp_path / "base")

    with pytest.raises(ValueError, match="was replaced while it was read, and nothing"):
        merging.merge(runs.open_run(adapter), tmp_path / "merged", replace)
    assert not (tmp_path / "merged").exists()


@pytest.mark.heavy
def test_a_base_of_few_learned_positions_is_merged_too(world, tmp_path):
    like = runs.open_run(world.base)
    shape = dataclasses.replace(like.model, learned_positions=40)
    arrays = tree.unstack(tree.flatten(tiny.model(shape)))
    runs.write(tmp_path / "base", like, arrays, shape)
    adapter = tiny_run.adapter(tmp_path / "base", LoRA(rank=2), tmp_path / "adapter")
    certificate = merging.merge(runs.open_run(adapter), tmp_path / "merged")
    assert certificate.probe == "4 rows of 40 random tokens"


def test_a_factor_of_zero_cannot_be_taken_out_again(world, tmp_path):
    adapter = broken(world, tmp_path, 0.0, "layers/1/mlp/up/site/ia3/factor", IA3())
    merging.merge(adapter, tmp_path / "merged")
    with pytest.raises(
        ValueError, match="up/kernel holds numbers that are not finite .a factor of z"
    ):
        merging.unmerge(runs.open_run(tmp_path / "merged"), adapter, tmp_path / "apart")
    assert not (tmp_path / "apart").exists()


@pytest.mark.heavy
def test_weights_of_the_base_that_trained_cannot_be_taken_out(world, tmp_path):
    train(world.tuning(3, method=Partial((r".*norm/scale",))), tmp_path / "norms")
    run = runs.open_run(tmp_path / "norms")
    merging.merge(run, tmp_path / "merged")
    with pytest.raises(ValueError, match="partial changed weights of the base itself"):
        merging.unmerge(runs.open_run(tmp_path / "merged"), run, tmp_path / "apart")
    assert not (tmp_path / "apart").exists()


def test_what_a_killed_merge_left_is_in_nobodys_way(world, tmp_path):
    run = runs.open_run(tiny_run.adapter(world.base, LoRA(rank=2), tmp_path / "a"))
    remains = tmp_path / "merged" / "model" / "30.orbax-checkpoint-tmp" / "state"
    remains.mkdir(parents=True)
    merging.merge(run, tmp_path / "merged")
    assert not remains.exists() and runs.open_run(tmp_path / "merged").base is None


def test_what_does_not_fit_is_said_before_anything_is_written(world, tmp_path):
    adapter = runs.open_run(tiny_run.adapter(world.base, LoRA(rank=2), tmp_path / "a"))
    other = runs.open_run(tiny_run.adapter(world.base, LoRA(rank=2), tmp_path / "b", seed=1))
    merging.merge(adapter, tmp_path / "merged")
    merged, base = runs.open_run(tmp_path / "merged"), runs.open_run(world.base)
    with pytest.raises(ValueError, match="is a whole model: nothing is attached"):
        merging.merge(base, tmp_path / "out")
    with pytest.raises(ValueError, match=r"was merged from \S+/a/\S+ with fingerprint .* not from"):
        merging.unmerge(merged, other, tmp_path / "out")
    with pytest.raises(ValueError, match="is no merged model"):
        merging.unmerge(base, adapter, tmp_path / "out")
    with pytest.raises(FileExistsError, match="holds a model already"):
        merging.merge(adapter, tmp_path / "merged")
    serial = runs.open_run(tiny_run.adapter(world.base, Bottleneck(width=2), tmp_path / "c"))
    with pytest.raises(ValueError, match="SmallMLP is no change of a weight"):
        merging.merge(serial, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_switching_an_adapter_off_gives_the_base():
    from tests.helpers import tiny

    method = Several(of=(LoRA(rank=2), VeRA(rank=4)))
    model = tiny.shaken(tiny.attached(method))
    off = methods.switch_off(methods.switch_off(model, "lora"), "vera")
    bare = {n for n in tree.flatten(model) if "/site/" not in n and not n.startswith("methods/")}
    leaves = tree.flatten(off)
    assert set(leaves) == bare
    assert all(np.array_equal(leaves[n], tree.flatten(model)[n]) for n in bare)
    with pytest.raises(ValueError, match=r"no adapter named 'dora' .* \['lora', 'vera'\]"):
        methods.switch_off(model, "dora")
    assert len(jax.tree.leaves(methods.switch_off(model, "vera"))) > len(leaves)
