"""Adapters on the shelf: what a saved one holds, sums, banks, and rows of data that choose."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import methods, sharding, tree
from research.adapters import banks, catalog, merging, sums
from research.checkpoints import runs
from research.commands import evaluate
from research.data import token_cache
from research.data.pipeline import Pipeline
from research.generation import decode
from research.interop.peft import exporting
from research.methods import IA3, Bank, Bottleneck, DoRA, LoRA, Prefix, Prompt, VeRA
from research.models.sites import Context
from research.sharding import MeshConfig
from research.training.loop import train
from tests.helpers import tiny, tiny_run
from tests.helpers.reader import share
from tests.methods.cases import CASES

A = "layers/0/mlp/up/site/lora/a"
SUMMED = {
    "lora": (LoRA(rank=2), LoRA(rank=4, alpha=3.0)),
    "lora-ranks": (LoRA(rank=2, ranks=((r".*/up", 1),)), LoRA(rank=2, ranks=((r".*/up", 3),))),
    "pissa": (LoRA(rank=2, start="pissa"), LoRA(rank=2)),
    "ia3": (IA3(), IA3()),
    "bottleneck": (Bottleneck(width=2), Bottleneck(width=4, scale=2.0)),
    "lora-full": (
        LoRA(rank=12, ranks=((r".*/up", 3),)),
        LoRA(rank=9, ranks=((r".*/up", 4),)),
    ),  # the width is 16
}
forward = jax.jit(tiny.logits)


def load(run):
    mesh = MeshConfig(data=1).make(jax.devices()[:1])
    return runs.load_model(run, mesh, sharding.RULES)


def save_adapters(world, tmp_path, *to_save):
    """Runs with random adapters on the base."""
    paths = [
        tiny_run.adapter(world.base, method, tmp_path / f"adapter{seed}", seed)
        for seed, method in enumerate(to_save)
    ]
    return [runs.open_run(path) for path in paths]


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
    torn = {f"{first}x" if n == first else n: a for n, a in arrays.items()}
    runs.write(tmp_path / "torn", run, torn, run.model, method=run.method, base=run.base)
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
    torn, out = runs.open_run(tmp_path / "torn"), tmp_path / "out"
    for act in (
        lambda: load(torn),
        lambda: merging.merge(torn, out),
        lambda: sums.add([(1, good), (1, torn)], out),
        lambda: banks.write({"good": good, "torn": torn}, out),
        lambda: exporting.adapter_tensors(torn),
    ):
        with pytest.raises(ValueError, match=rf"torn/model/0(?s:.)*{message}"):
            act()
    assert not out.exists()


def test_a_sum_is_asked_as_what_it_is_a_sum_of(world, tmp_path):
    train(world.tuning(1, method=LoRA(rank=2)), tmp_path / "run")
    run = runs.open_run(tmp_path / "run")
    sums.add([(0.5, run), (0.3, run)], tmp_path / "sum")
    experiment = runs.open_run(tmp_path / "sum").experiment
    assert experiment is not None and experiment.data.objective.kind == "supervised"


@pytest.mark.parametrize("name", SUMMED)
def test_a_weighted_sum_is_linear_in_what_adapters_do(world, name, tmp_path):
    first, second = save_adapters(world, tmp_path, *SUMMED[name])
    sums.add([(0.7, first), (-0.4, second)], tmp_path / "sum")
    total = load(runs.open_run(tmp_path / "sum"))
    models = [load(run) for run in (first, second)]
    key = jax.random.key(5)
    count = 0
    modules = [dict(methods.places(model, *methods.PLACES)) for model in (total, *models)]
    for place, module in modules[0].items():
        delta = module.site.get(added_name := SUMMED[name][0].adapter)
        if delta is None:
            continue
        weight = methods.weight_of(total, module)
        inputs = 16 if weight is None else weight.kernel.shape[-2]
        outputs = 16 if weight is None else weight.kernel.shape[-1]
        x = jax.random.normal(jax.random.fold_in(key, count), (1, 3, inputs))
        y = jax.random.normal(jax.random.fold_in(key, 99), (1, 3, outputs))

        def does(delta, x=x, y=y):
            one = jax.tree.map(lambda leaf: leaf[0], delta)
            return one(x, y, None, Context()) - y

        parts = [m[place].site[added_name] for m in modules[1:]]
        expected = 0.7 * does(parts[0]) - 0.4 * does(parts[1])
        np.testing.assert_allclose(does(delta), expected, atol=1e-4)
        count += 1
    assert count


BANKS = {
    "lora": (LoRA(rank=2), LoRA(rank=4, alpha=5.0, adapter="other")),
    "dora": (DoRA(rank=4, ranks=((r".*/up", 6),)), DoRA(rank=2, ranks=((r".*/up", 1),))),
    "houlsby": (Bottleneck(width=2), Bottleneck(width=3)),
    "vera": (VeRA(rank=4), VeRA(rank=8)),
    "prompt": (Prompt(length=3), Prompt(length=3, start="random")),
    "prefix": (Prefix(length=3), Prefix(length=3)),
}


QUICK = ("lora", "prompt")
HEAVY = [pytest.param(name, marks=pytest.mark.heavy) for name in BANKS if name not in QUICK]


@pytest.mark.parametrize("name", [*QUICK, *HEAVY])
def test_each_row_of_a_bank_is_its_adapter_alone_and_a_row_of_none_is_the_base(
    world, name, tmp_path
):
    """Also with other ranks, and where something stands in front of the text."""
    adapters = dict(zip("ab", save_adapters(world, tmp_path, *BANKS[name]), strict=True))
    banks.write(adapters, tmp_path / "bank")
    bank, base = runs.open_run(tmp_path / "bank"), runs.open_run(world.base)
    rows = np.asarray([1, -1, 0, 0, 0, 0, 0, 2], np.int32)
    batch = tiny.batch()
    logits = forward(load(bank), batch, Context(adapter=rows))
    for row, one in enumerate((adapters["b"], base, adapters["a"])):
        real = batch.segments[row] > 0  # padding sees nothing, and says anything
        expected = forward(load(one), batch)[row]
        np.testing.assert_allclose(logits[row][real], expected[real], atol=1e-4)
    assert np.isnan(logits[7]).any(), "there is no third adapter"
    answers = [decode.generate(load(one), [[5, 6, 7]], 6, 1) for one in (adapters["b"], base)]
    bank_answers = decode.generate(load(bank), [[5, 6, 7]] * 2, 6, 1, adapter=rows[:2])
    assert bank_answers == [answers[0][0], answers[1][0]]


def test_rows_of_a_bank_of_saved_adapters_equal_each_run_alone(world, tmp_path):
    loras = (LoRA(rank=2), LoRA(rank=2, alpha=5.0, adapter="other"))
    adapters = dict(zip(("law", "style"), save_adapters(world, tmp_path, *loras), strict=True))
    banks.write(adapters, tmp_path / "bank")
    run, batch = runs.open_run(tmp_path / "bank"), tiny.batch()
    mesh = MeshConfig(data=1).make(jax.devices()[:1])
    numbers = np.asarray([1, -1, 0, 0, 0, 0, 0, 0], np.int32)
    for model in (load(run), banks.load_bank(adapters, mesh, sharding.RULES)):
        logits = forward(model, batch, Context(adapter=numbers))
        alone = (adapters["style"], runs.open_run(world.base), adapters["law"])
        for row, one in enumerate(alone):
            np.testing.assert_allclose(logits[row], forward(load(one), batch)[row], atol=1e-4)
    with evaluate.scorer(run, "style") as score:
        nll = score(batch)
    with evaluate.scorer(adapters["style"]) as score:
        np.testing.assert_allclose(nll, score(batch), atol=1e-4)


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


def two_sources(world):
    """The same sentences under two names, each for an adapter of its own."""
    data = world.data()
    first = dataclasses.replace(data.sources[0], adapter="prose")
    second = dataclasses.replace(first, name="roofs", adapter="roofs")
    return dataclasses.replace(data, sources=(first, second))


def test_rows_of_the_data_say_which_adapter_they_train_on_any_number_of_hosts(world):
    tokenizer = runs.open_run(world.base).tokenizer
    names = ("roofs", "prose")
    data = Pipeline(two_sources(world), tokenizer, token_cache.default_cache(), adapters=names)
    numbers = set()
    for step in range(3):
        batch = data.batch(step)
        assert batch.adapter.dtype == np.int32 and batch.adapter.shape == (8,)
        for hosts in (2, 4):
            parts = [data.batch(step, share(host, hosts, 8)) for host in range(hosts)]
            assert np.array_equal(np.concatenate([p.adapter for p in parts]), batch.adapter)
        numbers |= set(batch.adapter.tolist())
    assert numbers == {0, 1}
    heldout_batch = data.heldout("roofs", "heldout").batch(0)
    assert heldout_batch.adapter.tolist() == [0] * 8


def test_a_bank_trains_on_its_sources_and_answers_with_each(world, tmp_path):
    bank = Bank(of=LoRA(rank=2), names=("prose", "roofs"))
    changes = {"data": two_sources(world), "method": bank, "evaluate_split": "heldout"}
    experiment = world.tuning(4, **changes)
    summary = train(experiment, tmp_path / "run")
    assert np.isfinite(summary.metrics["heldout_loss"])
    run = runs.open_run(tmp_path / "run")
    b = "layers/0/mlp/up/site/lora/each/b"
    largest = np.abs(run.read(b)[b]).max(axis=(1, 2))
    assert (largest > 0).all() and largest[0] != largest[1]


@pytest.mark.parametrize(
    ("chosen", "method", "message"),
    [
        ("lax", Bank(of=LoRA(), names=("law",)), r"must name one of .*\(law\), not 'lax'"),
        (None, Bank(of=LoRA(), names=("law",)), r"must name one of .*\(law\), not None"),
        ("law", LoRA(), "names the adapter 'law', but the method is no bank"),
        ("law", Bank(of=LoRA(), names=("law", "style")), r"No source trains .*\['style'\]"),
    ],
    ids=["unknown", "none", "no-bank", "unused"],
)
def test_sources_and_banks_that_do_not_fit_are_refused(world, chosen, method, message, tmp_path):
    data = world.data()
    source = dataclasses.replace(data.sources[0], adapter=chosen)
    experiment = world.tuning(1, data=dataclasses.replace(data, sources=(source,)), method=method)
    with pytest.raises(ValueError, match=message):
        train(experiment, tmp_path / "run")
    assert not (tmp_path / "run").exists()
