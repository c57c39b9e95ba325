"""Methods that share a base: several in every row, or one of a bank a row."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest

from research import methods, tree
from research.config import schema
from research.experiment import MethodConfig
from research.generation import decode
from research.methods import IA3, Bank, Full, LoRA, Partial, Prompt, Several, bank
from research.optim import optimizers
from tests.helpers import rounding, tiny
from tests.methods.cases import CASES, GROWTH, SHAPE

# matrices, vectors and tokens in turn
IN_TURN = list(
    zip(optimizers.OPTIMIZERS, itertools.cycle(["lora-ends", "ia3", "prefix-mlp"]), strict=False)
)
forward = jax.jit(tiny.logits)


@pytest.mark.parametrize("case", CASES)
def test_rows_of_a_bank_are_those_of_each_adapter_alone(case):
    method = CASES[case].method
    alone = [tiny.shaken(tiny.attached(method, SHAPE), seed=3)]

    def is_shared(name):
        return not tree.is_attached(name) or "first_" in name or "methods/vera/" in name

    for seed in (4, 5):  # what is attached differs, the base does not
        noisy_leaves = tree.flatten(tiny.shaken(alone[0], seed=seed))
        first = tree.flatten(alone[0])
        base_leaves = {name: first[name] for name in first if is_shared(name)}
        alone.append(tree.unflatten(alone[0], noisy_leaves | base_leaves))
    together_model = bank.stack(alone, method)
    ids = np.array([0, 2, 1, 1, 0, 2, 2, 0], np.int32)
    batch = dataclasses.replace(tiny.batch(), adapter=ids)
    together = jax.jit(lambda m, b: tiny.logits(m, b, methods_context(b)))(together_model, batch)
    for number, model in enumerate(alone):
        actual, expected = together[ids == number], forward(model, tiny.batch())[ids == number]
        scale = GROWTH * np.abs(expected).max()
        rounding.assert_close(actual, expected, roundings=tiny.ROUNDINGS, scale=scale)


def methods_context(batch):
    from research.models.sites import Context

    return Context(adapter=batch.adapter)


@pytest.mark.heavy
def test_a_row_without_an_adapter_is_the_bases():
    model = tiny.shaken(tiny.attached(Bank(of=LoRA(rank=2), names=("a", "b")), SHAPE))
    bare = jax.tree.map(lambda leaf: leaf, model)
    for _, linear in methods.linears(bare):
        linear.site.clear()
    batch = dataclasses.replace(tiny.batch(), adapter=np.array([0, -1] * 4, np.int32))
    logits = tiny.logits(model, batch, methods_context(batch))
    np.testing.assert_array_equal(logits[1::2], tiny.logits(bare, batch)[1::2])
    assert np.abs(logits[0] - tiny.logits(bare, batch)[0]).max() > 1e-2
    with pytest.raises(ValueError, match="Batch.adapter` must say which"):
        tiny.logits(model, tiny.batch())


@pytest.mark.heavy
def test_a_bank_trains_each_adapter_on_its_own_rows():
    method = Bank(of=LoRA(rank=2), names=("a", "b"))
    model = tiny.shaken(tiny.attached(method, SHAPE))
    trainable, frozen = tree.partition(model, methods.trainable(model, method))
    assert all("/site/lora/each/" in name for name in trainable)
    batch = dataclasses.replace(tiny.batch(), adapter=np.zeros(8, np.int32))

    def total(trainable):
        merged = tree.merge(model, trainable, frozen)
        return tiny.logits(merged, batch, methods_context(batch)).sum()

    for name, gradient in jax.grad(total)(trainable).items():
        assert np.abs(gradient[:, 0]).max() > 0 and not gradient[:, 1].any(), name


@pytest.mark.heavy
@pytest.mark.parametrize(("optimizer", "case"), IN_TURN)
def test_a_banks_adapters_are_optimised_as_each_alone(optimizer, case):
    method = CASES[case].method
    alone = [tiny.shaken(tiny.attached(method, SHAPE), seed=seed) for seed in (3, 4)]
    together = Bank(of=method, names=("a", "b"))
    steps = []
    for model, one in ((bank.stack(alone, method), together), *((m, method) for m in alone)):
        weights, _ = tree.partition(model, methods.trainable(model, one))
        axes = tree.parameter_axes(model)
        config = optimizers.OPTIMIZERS[optimizer]()
        step = optimizers.make_optimizer(config, axes)
        gradients = {name: jax.numpy.cos(weight) for name, weight in weights.items()}
        steps.append(jax.jit(step.update)(gradients, step.init(weights), weights, step=0)[0])
    for name, updates in steps[0].items():
        for number, own_updates in enumerate(steps[1:]):
            update = updates.take(number, axis=int(tree.is_stacked(name)))
            expected = own_updates[name.replace("/each/", "/")]
            # Muon's five iterations of three products, each a sum over 48 numbers at most
            rounding.assert_close(update, expected, roundings=5 * 3 * 48, err_msg=name)


@pytest.mark.heavy
def test_decoding_uses_each_rows_adapter():
    method = Bank(of=LoRA(rank=2), names=("a", "b"))
    model = tiny.shaken(tiny.attached(method, SHAPE), size=0.5)
    prompts = [[3, 5, 7]] * 3
    ids = np.array([0, 1, -1], np.int32)
    together = decode.generate(model, prompts, 6, end_id=0, adapter=ids)
    for row, number in enumerate(ids):
        alone = decode.generate(model, prompts[:1], 6, end_id=0, adapter=np.array([number]))
        assert alone[0] == together[row]
    assert together[0] != together[2]
    for strange in (2, -2):
        with pytest.raises(ValueError, match=rf"adapters \[{strange}\]: the bank holds 2"):
            decode.generate(model, prompts[:1], 6, end_id=0, adapter=np.array([strange]))


def test_several_methods_act_together_in_any_order():
    lora, prompt = LoRA(targets=("layers/.*/up", "embedding"), rank=2), Prompt(length=3)
    batch = tiny.batch()
    both = [tiny.attached(Several(of=pair), SHAPE) for pair in ((lora, prompt), (prompt, lora))]
    for model, pair in zip(both, ((lora, prompt), (prompt, lora)), strict=True):
        names = methods.trainable(model, Several(of=pair))
        assert {"embedding/site/prompt/vectors", "embedding/site/lora/a"} <= set(names)
        assert np.isfinite(forward(tiny.shaken(model), batch)).all()
    shaken = tiny.shaken(both[0])
    reordered = tree.unflatten(both[1], tree.flatten(shaken))
    logits, expected = forward(reordered, batch), forward(shaken, batch)
    rounding.assert_close(logits, expected, roundings=tiny.ROUNDINGS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"kind": "several", "of": [{"kind": "lora"}]}, "holds two methods or more"),
        ({"kind": "several", "of": [{"kind": "lora"}, {"kind": "lora"}]}, "by different names"),
        ({"kind": "several", "of": [{"kind": "full"}, {"kind": "lora"}]}, "goes with no other"),
        ({"kind": "bank", "of": {"kind": "full"}, "names": ["a"]}, "full attaches nothing"),
        ({"kind": "bank", "of": {"kind": "lora"}, "names": ["a", "a"]}, "are different ones"),
        ({"kind": "prompt", "start": "text"}, "belong together"),
        ({"kind": "prompt", "labels": ["a"]}, "belong together"),
        ({"kind": "prompt", "tokens": [[3]]}, 'start "vocabulary" takes no `tokens`'),
        (
            {"kind": "prefix", "mlp_width": 8},
            "`mlp_width` is the MLP's of a `reparameterized` prefix",
        ),
        ({"kind": "vera", "inner": 0.0}, "greater than 0"),
        (
            {"kind": "several", "of": [{"kind": "lora"}, {"kind": "dora"}]},
            "it acts before lora: put it first",
        ),
        ({"kind": "lora", "ranks": [["(", 4]]}, "is no regular expression"),
        ({"kind": "lora", "ranks": [["layers/9/.*", 4]]}, "matches nothing"),
        ({"kind": "lora", "ranks": [["layers/0/mlp", 4]]}, "pattern 'layers/0/mlp' matches"),
        (
            {"kind": "dora", "targets": ["layers/0/mlp/up"], "alphas": [[".*/query", 4.0]]},
            "dora: alphas: pattern '../query' matches nothing",
        ),
        ({"kind": "bottleneck", "targets": ["layers/0/mlp"]}, "matches nothing"),
        ({"kind": "vera", "targets": []}, "vera: `targets` is empty"),
        ({"kind": "lora", "targets": []}, "lora: `targets` is empty"),
        ({"kind": "partial", "patterns": [".*/site/lora/a"]}, "method: patterns.*matches nothing"),
        (
            {"kind": "prompt", "start": "labels", "labels": ["a", "b", "c"], "length": 2},
            "3 labels do not fit a prompt of length 2",
        ),
        (
            {"kind": "bank", "of": {"kind": "bank", "of": {"kind": "lora"}}, "names": ["a"]},
            "config.method.of",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_before_compute(content, message):
    with pytest.raises(ValueError, match=message):
        method = schema.build(MethodConfig, content, "config.method")
        methods.derive_stacks(SHAPE, method)


def test_a_bank_of_banks_is_refused():
    with pytest.raises(ValueError, match="bank attaches nothing that a bank could hold"):
        Bank(of=Bank(of=LoRA(), names=("a",)), names=("b",))


def test_partial_beside_another_method_trains_what_is_the_bases_alone():
    lora = LoRA(rank=2, start="pissa")
    several = Several(of=(lora, Partial(("layers/1/.*",))))
    trainable_names = set(methods.trainable(tiny.abstract(several), several))
    alone = {n for m in several.of for n in methods.trainable(tiny.abstract(m), m)}

    def singles(names):
        return {layer for n in names for layer in tree.layer_names(n)}

    assert singles(trainable_names) == singles(alone)
    assert not any("/scale" in name and "/site/" in name for name in trainable_names)


def test_prompts_fit_a_window_together():
    two = Several(of=(Prompt(length=3), Prompt(length=3, adapter="other")))
    with pytest.raises(ValueError, match="of 6 tokens does not fit a window of 5"):
        methods.derive_stacks(tiny.config(windows=(5, 0)), two)


def test_a_config_builds_what_composes():
    content = {"kind": "several", "of": [{"kind": "lora", "rank": 2}, {"kind": "prompt"}]}
    method = schema.build(MethodConfig, content, "config.method")
    assert method == Several(of=(LoRA(rank=2), Prompt())) and schema.to_dict(method)["of"]
    assert method.bind(None) == method
    assert {Full().kind, IA3().kind, Partial().kind} < set(methods.METHODS)


def test_a_prompts_text_becomes_its_tokens():
    class Words:
        def encode(self, text):
            return [ord(letter) for letter in text]

    prompt = Prompt(length=5, start="text", text="ab").bind(Words())
    assert prompt.tokens == ((97,), (98,))
    rows = tiny.model(tiny.config(vocabulary=128)).embedding.kernel[...]
    vectors = tiny.attached(prompt, tiny.config(vocabulary=128)).embedding.site["prompt"].vectors
    # a mean of two rows: a sum, a quotient
    rounding.assert_close(vectors[...], rows[np.array([97, 98, 97, 98, 97])], roundings=2)
    labels = Prompt(length=2, start="labels", labels=("ab", "c")).bind(Words())
    assert labels.tokens == ((97, 98), (99,))
    vectors = tiny.attached(labels, tiny.config(vocabulary=128)).embedding.site["prompt"].vectors
    rounding.assert_close(vectors[0], rows[97:99].mean(0), roundings=2)
    rounding.assert_close(vectors[1], rows[99], roundings=2)
    with pytest.raises(ValueError, match="of 5 tokens does not fit a window of 4"):
        methods.derive_stacks(tiny.config(windows=(4, 0)), Prompt(length=5))
