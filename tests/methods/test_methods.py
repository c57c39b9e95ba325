"""Attaching: names, stacks, patterns; tests/methods/test_invariants.py asks every method."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs.methods import smollm2
from research import methods, sharding, tree
from research import step as stepping
from research.checkpoints import runs
from research.data.config import DataConfig
from research.data.sources import JsonlConfig
from research.experiment import Experiment
from research.methods import IA3, Bank, Bottleneck, DoRA, LoRA, Partial, Prompt, Several, VeRA
from research.methods.loha import LoHa
from research.methods.oft import OFT
from research.sharding import MeshConfig
from research.training.program import make_program
from research.training.session import Session
from tests.helpers import rounding, tiny
from tests.methods.cases import GAP, GROWTH

forward = jax.jit(tiny.logits)
merge = jax.jit(methods.merge, static_argnames="adapter")


def test_base_paths_and_values_are_the_same_before_and_after_attaching():
    base, attached = (
        tree.unstack(tree.flatten(m)) for m in (tiny.model(), tiny.attached(LoRA(rank=4)))
    )
    assert all(np.array_equal(base[name], attached[name]) for name in base)


def test_attaching_to_a_copy_leaves_the_original_untouched():
    model = tiny.model()
    LoRA(rank=2).attach(model, jax.random.key(0))
    assert all(not linear.site for _, linear in methods.linears(model))


def test_dropout_of_sites_that_drop_nothing_is_refused():
    nothing = JsonlConfig("none", "none")
    data = DataConfig((nothing,), sequence_length=16, batch_size=8)
    experiment = functools.partial(
        Experiment, steps=1, model=tiny.CONFIG, tokenizer="none", data=data, adapter_dropout=0.1
    )
    make_program(experiment(method=LoRA(rank=2)), None)
    for method in (IA3(), Prompt(length=2), Partial(), Bank(of=IA3(), names=("a", "b"))):
        with pytest.raises(ValueError, match=f"nothing that {method.kind} attaches drops units"):
            make_program(experiment(method=method), None)


def test_stacks_follow_sites_and_trainability():
    shape = tiny.config(layers=6)
    some = LoRA(targets=(r"layers/[45]/mlp/up",), rank=2)
    assert methods.derive_stacks(shape, some) == ("0-3", "4-5")
    assert methods.derive_stacks(shape, Partial((r"layers/5/.*", "head.*|final_norm/scale"))) == (
        "0-4",
        "5-5",
    )
    window = tiny.config(layers=6, windows=(4, 4, 0))
    assert methods.derive_stacks(window, LoRA(rank=2)) == ("0-5",)


@pytest.mark.heavy
def test_adapter_start_does_not_depend_on_grouping():
    stacked_leaves = tree.unstack(tree.flatten(tiny.attached(LoRA(rank=4))))
    single_leaves = tree.unstack(
        tree.flatten(tiny.attached(LoRA(rank=4), tiny.config(max_scan_layers=1)))
    )
    assert all(np.array_equal(stacked_leaves[name], single_leaves[name]) for name in stacked_leaves)
    a = [leaf for name, leaf in stacked_leaves.items() if name.endswith("query/site/lora/a")]
    assert len(a) == 3 and not np.array_equal(a[0], a[1])


@pytest.mark.heavy
@pytest.mark.parametrize(
    "method",
    [LoRA(rank=2, start="pissa"), DoRA(rank=2), VeRA(rank=4), Prompt(length=4), Bottleneck()],
    ids=lambda method: method.kind,
)
def test_adapter_start_does_not_depend_on_mesh(world, method):
    """Arrays are made where they lie: no device ever holds them all."""
    states = []
    for mesh, devices in ((MeshConfig(1), [0]), (MeshConfig(1, 2, 2, 2), [3, 1, 4, 0, 6, 7, 2, 5])):
        tuning = world.tuning(1, method=method, mesh=mesh)
        base, _ = runs.open_base_and_tokenizer(tuning)
        program = make_program(tuning, base, [jax.devices()[i] for i in devices])
        with sharding.mesh_context(program.mesh, tuning.sharding_rules):
            states.append(tree.flatten(program.model(*Session().fresh_state(program))))
    for name, leaf in states[0].items():
        actual, expected = np.abs(states[1][name]), np.abs(leaf)
        scale = expected.max() / GAP
        rounding.assert_close(actual, expected, roundings=10, scale=scale, err_msg=name)


def test_two_adapters_act_together_and_merge_apart():
    batch = tiny.batch()
    second = jax.jit(LoRA(rank=2, adapter="b").attach)
    two = tiny.shaken(second(tiny.attached(LoRA(rank=4, adapter="a")), jax.random.key(9)))
    one = merge(two, adapter="a")
    actual, expected = forward(one, batch), forward(two, batch)
    scale = GROWTH * np.abs(expected).max()
    rounding.assert_close(actual, expected, roundings=tiny.ROUNDINGS, scale=scale)
    assert all(list(linear.site) == ["b"] for _, linear in methods.linears(one))


def test_adapters_act_on_untied_heads_too():
    shape = tiny.config(tie_embeddings=False)
    method = LoRA(targets=(r"layers/\d+/mlp/down",), rank=2)
    model = tiny.attached(method, shape)
    assert jnp.isfinite(forward(model, tiny.batch())).all()


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (
            LoRA(targets=(r"layers/\d+/attention/quary",)),
            "quary' matches nothing; nearest: .*query",
        ),
        (LoRA(rank=40), "rank 40 does not fit a weight of 32 x"),
        (LoRA(rank=0), "rank 0 does not fit"),
        (DoRA(rank=40), "rank 40 does not fit"),
        (LoHa(rank=40), "rank 40 does not fit"),
        (VeRA(rank=49), "rank 49 is over the smaller side .* 48 x 48"),
        (Partial(("layers/9/.*",)), "matches nothing"),
    ],
    ids=["pattern", "large", "zero", "dora", "loha", "vera", "partial"],
)
def test_a_method_that_does_not_fit_is_refused_before_compute(method, message):
    with pytest.raises(ValueError, match=message):
        methods.derive_stacks(tiny.CONFIG, method)


def test_lora_plus_is_a_rule_over_rates():
    method = LoRA(rank=2)
    model = tiny.abstract(method)
    names = methods.trainable(model, method)
    rules = smollm2.FORMS["lora_plus"].overrides["learning_rate_rules"]
    rates = stepping.multipliers(rules, names, names, "learning_rate_rules")
    assert {name.rpartition("/")[2] for name in names} == {"a", "b"}
    for name in names:
        assert set(rates[name].tolist()) == {16.0 if name.endswith("/b") else 1.0}


def test_merging_what_is_not_there_is_refused():
    with pytest.raises(ValueError, match="no adapter named 'lora'"):
        methods.merge(tiny.model(), "lora")


@pytest.mark.parametrize(
    "of",
    [
        (IA3(), LoRA(rank=2)),
        (LoRA(rank=2), IA3()),
        (OFT(block_size=4), LoRA(rank=2)),
        (LoRA(rank=2), OFT(block_size=4)),
    ],
    ids=lambda of: f"{of[0].kind}-{of[1].kind}",
)
def test_adapters_of_one_weight_merge_in_the_order_in_which_they_act(of):
    model = tiny.shaken(tiny.attached(Several(of=of)))
    first, second = (method.adapter for method in of)
    with pytest.raises(ValueError, match=f"'{second}' acts on what '{first}' gives; merge that"):
        methods.merge(model, second)
    merged = methods.merge(methods.merge(model, first), second)
    expected = forward(model, tiny.batch())
    logits, scale = forward(merged, tiny.batch()), GROWTH * np.abs(expected).max()
    rounding.assert_close(logits, expected, roundings=tiny.ROUNDINGS, scale=scale)


@pytest.mark.parametrize(("rank", "parts"), [(4, "tensor"), (2, None)])
def test_what_is_attached_is_replicated_where_it_does_not_divide_over_the_mesh(rank, parts):
    model = tiny.abstract(LoRA(rank=rank))
    rules = (("rank", "tensor"), *(rule for rule in sharding.RULES if rule[0] != "rank"))
    mesh = MeshConfig(data=1, fsdp=2, tensor=4).make()
    flat = tree.flatten(model)
    shardings = sharding.shardings(tree.parameter_axes(model), flat, mesh, rules)
    assert shardings["layers/0-2/mlp/up/site/lora/a"].spec[2] == parts
    # the rest of it lies as before
    assert "fsdp" in shardings["layers/0-2/mlp/up/site/lora/a"].spec[1]
    assert shardings["layers/0-2/mlp/up/kernel"].spec[2] == "tensor"


@pytest.mark.parametrize("axes", [("embed",), None])
def test_a_parameter_notes_a_logical_axis_for_each_of_its_own(axes):
    model = tiny.model()
    metadata = {} if axes is None else {"axes": axes}
    model.head.site["mine"] = nnx.Param(jnp.zeros((3, 4)), **metadata)
    message = (
        r"head/site/mine: a parameter of shape \(3, 4\) notes one logical axis .* each of its 2"
    )
    with pytest.raises(ValueError, match=message):
        tree.parameter_axes(model)
