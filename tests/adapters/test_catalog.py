"""Saved adapters: what they hold, how they are listed, and which do not go together."""

import jax.numpy as jnp
import numpy as np
import pytest

from research import tree
from research.adapters import banks, catalog, merging, sums
from research.checkpoints import runs
from research.interop.peft import exporting
from research.methods import Bank, Bottleneck, DoRA, LoRA, Prompt, VeRA
from research.training.loop import train
from tests.adapters.saved import load, save_adapters
from tests.helpers import tiny_run
from tests.methods.cases import CASES

A = "layers/0/mlp/up/site/lora/a"


@pytest.mark.parametrize("case", CASES)
def test_a_saved_adapter_holds_no_base_weights_and_loads_whatever_the_start(world, case, tmp_path):
    (run,) = save_adapters(world, tmp_path, CASES[case].method)
    own, below = set(run.checkpoint.checksums("model/")), set(run.base.checksums())
    assert own and not own & below
    loaded = tree.unstack(tree.flatten(load(run)))  # its start was drawn with another seed
    assert set(loaded) == own | below
    for name, array in run.read(*run.checkpoint.checksums("model/")).items():
        assert np.array_equal(loaded[name], array), name


@pytest.mark.parametrize("case", ["lora", "dora", "ia3", "houlsby", "vera", "prompt", "prefix-mlp"])
def test_missing_and_surplus_arrays_are_named(world, case, tmp_path):
    (run,) = save_adapters(world, tmp_path, CASES[case].method)
    arrays = run.read(*run.checkpoint.checksums("model/"))
    first = sorted(arrays)[0]
    damaged = {f"{first}x" if n == first else n: a for n, a in arrays.items()}
    runs.write(tmp_path / "torn", run, damaged, run.model, method=run.method, base=run.base)
    with pytest.raises(ValueError, match=rf"(?s)do not fit.*{first}"):
        load(runs.open_run(tmp_path / "torn"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda arrays: arrays | {"layers/0/mlp/up/site/lora/c": np.ones(3, np.float32)}, "lora/c"),
        # one of the base's own, which would take its place
        (lambda arrays: arrays | {"layers/0/mlp/up/kernel": np.ones((16, 32), np.float32)}, "up/k"),
        (lambda arrays: arrays | {A: arrays[A].T}, r"is float32 \[2, 16\]; lora leaves"),
        (lambda arrays: arrays | {A: arrays[A].astype(jnp.bfloat16)}, "is bfloat16"),
        (lambda arrays: {n: a for n, a in arrays.items() if n != A}, "missing " + A),
    ],
    ids=["surplus", "of-the-base", "shape", "type", "missing"],
)
def test_every_way_to_open_an_adapter_names_what_does_not_fit(world, change, message, tmp_path):
    good, run = save_adapters(world, tmp_path, LoRA(rank=2), LoRA(rank=2))
    arrays = change(run.read(*run.checkpoint.checksums("model/")))
    runs.write(tmp_path / "torn", run, arrays, run.model, method=run.method, base=run.base)
    damaged, out = runs.open_run(tmp_path / "torn"), tmp_path / "out"
    for act in (
        lambda: load(damaged),
        lambda: merging.merge(damaged, out),
        lambda: sums.add([(1, good), (1, damaged)], out),
        lambda: banks.write({"good": good, "torn": damaged}, out),
        lambda: exporting.adapter_tensors(damaged),
    ):
        with pytest.raises(ValueError, match=rf"torn/model/0(?s:.)*{message}"):
            act()
    assert not out.exists()


@pytest.mark.heavy
def test_what_does_not_go_together_is_refused_by_name(world, tmp_path):
    lora, vera, dora, wide, prompt, longer, silu, gelu, mixed = save_adapters(
        world,
        tmp_path,
        *(LoRA(rank=2), VeRA(rank=4), DoRA(rank=2), LoRA(rank=4), Prompt(length=2)),
        *(Prompt(length=3), Bottleneck(width=2, activation="silu"), Bottleneck(width=2)),
        LoRA(rank=2, ranks=((r".*/up", 6),)),
    )
    bank = tmp_path / "bank"
    banks.write({"a": lora}, bank)
    out, base = tmp_path / "out", runs.open_run(world.base)
    other = tmp_path / "other"
    train(world.experiment(1, seed=1), other)
    far = runs.open_run(tiny_run.adapter(other, LoRA(rank=2), tmp_path / "far"))
    checks = [
        (lambda: sums.add([(1, lora), (1, vera)], out), "a sum is of one method"),
        (lambda: sums.add([(1, dora), (1, dora)], out), "sum of dora adapters is not linear"),
        (lambda: sums.add([(1, prompt)], out), "sum of prompt adapters is not linear"),
        (lambda: sums.add([(1, lora), (1, far)], out), "adapters of different bases do not"),
        (
            lambda: banks.write({"a": lora, "b": far}, out),
            "adapters of different bases do not",
        ),
        (lambda: banks.write({"a": lora, "b": vera}, out), "b is vera and a is lora"),
        (
            lambda: banks.write({"a": mixed, "b": wide}, out),
            "none of a, b has the largest rank",
        ),
        (
            lambda: banks.write({"a": prompt, "b": longer}, out),
            "adapters of a bank have one sh",
        ),
        (lambda: banks.write({"a": silu, "b": gelu}, out), "(?s)b is bottleneck .*gelu.*silu"),
        (lambda: banks.write({"a": runs.open_run(bank)}, out), "a is bank: a bank holds"),
        (lambda: banks.write({"a": lora, "b": base}, out), "is a whole model, not an adapter"),
        (lambda: catalog.open_named(["law"]), "write it as NAME=RUN"),
        (
            lambda: banks.adapter_number(Bank(of=LoRA(), names=("law",)), "lax"),
            "no adapter 'lax'.*law",
        ),
    ]
    for act, message in checks:
        with pytest.raises(ValueError, match=message):
            act()
    assert not out.exists()


def test_numbers_that_are_not_finite_are_in_no_bank_and_no_sum(world, tmp_path):
    good, run = save_adapters(world, tmp_path, LoRA(rank=2), LoRA(rank=2))
    arrays = run.read(*run.checkpoint.checksums("model/"))
    arrays[A] = np.full_like(arrays[A], np.nan)
    runs.write(tmp_path / "nan", run, arrays, run.model, method=run.method, base=run.base)
    broken, out = runs.open_run(tmp_path / "nan"), tmp_path / "out"
    for act in (
        lambda: sums.add([(1, good), (1, broken)], out),
        lambda: sums.add([(1e39, good)], out),
        lambda: banks.write({"a": good, "b": broken}, out),
    ):
        with pytest.raises(ValueError, match="is not finite everywhere; nothing is written"):
            act()
    assert not out.exists()


def test_an_adapter_whose_base_is_gone_is_listed_and_found_again(world, tmp_path):
    train(world.experiment(1, seed=1), tmp_path / "base")
    path = tiny_run.adapter(tmp_path / "base", LoRA(rank=2), tmp_path / "adapters" / "law")
    (tmp_path / "base").rename(tmp_path / "moved")
    (row,) = catalog.list_adapters(tmp_path / "adapters")
    assert row.path == str(path) and row.base.endswith("(gone)") and row.method == "lora"
    with pytest.raises(FileNotFoundError, match="say where it is now with --base"):
        catalog.open_named([f"law={path}"])
    adapters = catalog.open_named([f"law={path}"], str(tmp_path / "moved"))
    banks.write(adapters, tmp_path / "bank")
