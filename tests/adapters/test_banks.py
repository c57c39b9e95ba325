"""Saved adapters side by side, and rows of data that choose among them."""

import dataclasses

import jax
import numpy as np
import pytest

from research import sharding
from research.adapters import banks
from research.checkpoints import runs
from research.data import token_cache
from research.data.pipeline import Pipeline
from research.evaluation.report import loaded_model
from research.generation import decode
from research.methods import Bank, Bottleneck, DoRA, LoRA, Prefix, Prompt, VeRA
from research.models.sites import Context
from research.sharding import MeshConfig
from research.training.loop import train
from tests.adapters.saved import load, save_adapters
from tests.helpers import rounding, tiny, tiny_run
from tests.helpers.reader import share

forward = jax.jit(tiny.logits)


BANKS = {
    "lora": (LoRA(rank=2), LoRA(rank=4, alpha=5.0, adapter="other")),
    "dora": (DoRA(rank=4, ranks=((r".*/up", 6),)), DoRA(rank=2, ranks=((r".*/up", 1),))),
    "houlsby": (Bottleneck(width=2), Bottleneck(width=3)),
    "vera": (VeRA(rank=4), VeRA(rank=8)),
    "prompt": (Prompt(length=3), Prompt(length=3, start="random")),
    "prefix": (Prefix(length=3), Prefix(length=3)),
}


QUICK = ("prompt",)


HEAVY = [pytest.param(name, marks=pytest.mark.heavy) for name in BANKS if name not in QUICK]


@pytest.mark.heavy
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
        rounding.assert_close(logits[row][real], expected[real], roundings=tiny_run.ROUNDINGS)
    assert np.isnan(logits[7]).any(), "there is no third adapter"
    answers = [decode.generate(load(one), [[5, 6, 7]], 6, 1) for one in (adapters["b"], base)]
    bank_answers = decode.generate(load(bank), [[5, 6, 7]] * 2, 6, 1, adapter=rows[:2])
    assert bank_answers == [answers[0][0], answers[1][0]]


@pytest.mark.heavy
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
            expected = forward(load(one), batch)[row]
            rounding.assert_close(logits[row], expected, roundings=tiny_run.ROUNDINGS)
    with loaded_model(run, "style") as model:
        nll = model.score(batch)
    with loaded_model(adapters["style"]) as model:
        rounding.assert_close(nll, model.score(batch), roundings=tiny_run.ROUNDINGS)


def two_sources(world):
    """The same sentences under two names, each for an adapter of its own."""
    data = world.data()
    first = dataclasses.replace(data.sources[0], adapter="prose")
    second = dataclasses.replace(first, name="roofs", adapter="roofs")
    return dataclasses.replace(data, sources=(first, second))


@pytest.mark.heavy
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


@pytest.mark.heavy
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
    ("adapter", "method", "message"),
    [
        ("lax", Bank(of=LoRA(), names=("law",)), r"must name one of .*\(law\), not 'lax'"),
        (None, Bank(of=LoRA(), names=("law",)), r"must name one of .*\(law\), not None"),
        ("law", LoRA(), "names the adapter 'law', but the method is no bank"),
        ("law", Bank(of=LoRA(), names=("law", "style")), r"No source trains .*\['style'\]"),
    ],
    ids=["unknown", "none", "no-bank", "unused"],
)
def test_sources_and_banks_that_do_not_fit_are_refused(world, adapter, method, message, tmp_path):
    data = world.data()
    source = dataclasses.replace(data.sources[0], adapter=adapter)
    experiment = world.tuning(1, data=dataclasses.replace(data, sources=(source,)), method=method)
    with pytest.raises(ValueError, match=message):
        train(experiment, tmp_path / "run")
    assert not (tmp_path / "run").exists()
