"""Quantized weights: values as they were stored, in as many bytes as promised."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import qwix
from hypothesis import given, settings
from hypothesis import strategies as st

from research import methods, sharding, tree
from research import step as stepping
from research.methods import Full, LoRA, Partial
from research.models import quantization
from research.models.quantized_matrix import QuantizedMatrix, quantized_product
from research.sharding import MeshConfig
from research.training import cost
from tests.helpers import rounding, tiny
from tests.methods.cases import CASES

forward = jax.jit(tiny.logits)
quantize = jax.jit(
    functools.partial(QuantizedMatrix, axes=("embed", "mlp")), static_argnames="kind"
)
KINDS = ("nf4", "int8")


def normal(rows, columns, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32)


def relative_error(actual, expected):
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


# the error that a normal distribution has in 16 levels and in 255
@pytest.mark.parametrize(("kind", "error", "share"), [("nf4", 0.1, 0.53), ("int8", 0.01, 1.01)])
def test_bytes_and_error_of_a_parameter(kind, error, share):
    matrix = normal(576, 384)
    quantized = quantize(matrix, kind=kind)
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(quantized)) <= share * matrix.size
    assert quantized.shape == matrix.shape
    assert error / 2 < relative_error(quantized.astype(jnp.float32), matrix) < error


@pytest.mark.heavy
@given(st.integers(1, 4), st.integers(1, 40), st.floats(1e-6, 1e6), st.integers(0, 9))
@settings(deadline=None, max_examples=8)
def test_nf4_agrees_with_qwix_up_to_the_scales_eight_bits(tiles, columns, size, seed):
    matrix = size * normal(16 * tiles, columns, seed)
    quantized = QuantizedMatrix(jnp.asarray(matrix), (None, None), "nf4")
    actual = np.asarray(quantized.astype(jnp.float32))
    tile = 16 * tiles
    qwix_matrix = qwix.quantize(
        jnp.asarray(matrix), "nf4", channelwise_axes=(1,), tiled_axes={0: min(tile, 64)}
    )
    expected = np.asarray(qwix.dequantize(qwix_matrix))
    # a scale is off by half a step, and a step is at most 1/127 of the largest scale
    np.testing.assert_allclose(actual, expected, atol=np.abs(matrix).max() / 127)
    assert np.array_equal(np.sign(actual), np.sign(expected))


def test_a_tile_of_zeros_stays_zero_and_leaves_its_neighbours_alone():
    matrix = normal(128, 8)
    matrix[:64, 3] = 0
    values = np.asarray(quantize(matrix, kind="nf4").astype(jnp.float32))
    assert not values[:64, 3].any()
    assert relative_error(values, matrix) < 0.12


@pytest.mark.parametrize("kind", KINDS)
def test_the_product_and_its_gradient_are_those_of_the_dequantized_matrix(kind):
    x, quantized = normal(5, 64, 1), quantize(normal(64, 48), kind=kind)
    matrix = np.asarray(quantized.astype(jnp.float32))
    y, vjp = jax.vjp(lambda x: quantized_product(x, quantized, jnp.dtype("float32")), x)
    rounding.assert_close(y, x @ matrix, roundings=64)
    dy = normal(5, 48, 2)
    rounding.assert_close(vjp(dy)[0], dy @ matrix.T, roundings=48)


@pytest.mark.parametrize("kind", (*KINDS, "bfloat16"))
def test_a_quantized_model_computes_what_its_dequantized_copy_does_and_is_close_to_its_source(kind):
    shape = tiny.config(tie_embeddings=False, storage=quantization.PRESETS[kind])
    quantized, source = tiny.model(shape), tiny.model(tiny.config(tie_embeddings=False))
    logits = np.asarray(forward(quantized, tiny.batch()))
    # the same seed, so the same weights before they were stored
    assert relative_error(logits, forward(source, tiny.batch())) < {"nf4": 0.3}.get(kind, 0.02)
    copy = jax.jit(quantization.dequantize)(quantized)
    assert set(tree.flatten(copy)) == set(tree.flatten(source))
    rounding.assert_close(forward(copy, tiny.batch()), logits, roundings=tiny.ROUNDINGS)
    assert cost.count(quantized) == cost.count(source)


def test_rules_decide_how_each_layer_is_stored():
    rules = ((r"layers/1/mlp/\w+", "float32"), (r"layers/\d+/mlp/\w+", "nf4"))
    shape = tiny.config(storage=rules)
    assert methods.derive_stacks(shape, LoRA(rank=2)) == ("0-0", "1-1", "2-2")
    names = set(tree.flatten(tiny.abstract(LoRA(rank=2), shape)))
    assert "layers/0-0/mlp/up/kernel/codes" in names and "layers/1-1/mlp/up/kernel" in names


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"storage": ((r"layers/\d+/mlp/upp", "nf4"),)}, "'.*upp' matches nothing; nearest"),
        ({"storage": (("embedding", "int8"),)}, "embedding is looked up or shared; int8"),
        (
            {"storage": quantization.PRESETS["nf4"], "mlp_width": 67},
            "67 x 32 cannot be stored as nf4",
        ),
    ],
    ids=["pattern", "table", "tile"],
)
def test_a_rule_that_does_not_fit_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny.abstract(LoRA(rank=2), tiny.config(**changes))


@pytest.mark.parametrize(
    "method", [Full(), Partial((r"layers/2/mlp/up/.*",))], ids=lambda m: m.kind
)
@pytest.mark.parametrize("kind", (*KINDS, "bfloat16"))
def test_what_is_stored_below_float32_does_not_train(method, kind):
    shape = tiny.config(storage=quantization.PRESETS[kind])
    model, norms = tiny.abstract(method, shape), Partial((r".*norm/scale",))
    with pytest.raises(ValueError, match=r"would train, but the base stores it in \w+(8|16)"):
        methods.check_full_precision(model, methods.trainable(model, method))
    methods.check_full_precision(model, methods.trainable(model, norms))


def run_steps(method, shape, mesh=None):
    """Three steps: the losses and the last state."""
    model = tiny.attached(method, shape)
    names = methods.trainable(model, method)
    step_config, hyper, rules = stepping.StepConfig(names), tiny.hyper(names), sharding.RULES
    mesh = (mesh or MeshConfig(data=1)).make(jax.devices()[: 8 if mesh else 1])
    step, losses = jax.jit(stepping.train_step, static_argnames="step_config"), []
    with sharding.mesh_context(mesh, rules):
        state = stepping.init_state(model, step_config)
        parameters = sharding.shardings(
            tree.parameter_axes(model), tree.flatten(model), mesh, rules
        )
        shardings = sharding.state_shardings(tree.flatten(state), parameters, mesh)
        state = jax.device_put(state, tree.unflatten(state, shardings))
        batch = jax.device_put(tiny.batch(), sharding.batch_sharding(mesh, rules))
        for _ in range(3):
            state, metrics = step(state, batch, hyper, step_config)
            losses.append(float(metrics["loss"]))
    return losses, tree.flatten(state)


@pytest.mark.heavy
def test_pissa_starts_on_a_quantized_stack():
    """Decompositions of several layers side by side once waited for each other for ever."""
    shape = tiny.config(mlp_width=64, storage=((quantization.LINEARS, "nf4"),))
    method = LoRA(rank=4, start="pissa")
    model = tiny.attached(method, shape)
    batch = tiny.batch()
    actual, expected = (tiny.logits(m, batch) for m in (model, tiny.attached(LoRA(rank=4), shape)))
    rounding.assert_close(actual, expected, roundings=tiny.ROUNDINGS)


ON_QUANTIZED = [("lora", "int8")]
ON_QUANTIZED += [
    pytest.param("lora", kind, marks=pytest.mark.heavy) for kind in ("nf4", "bfloat16")
]
ON_QUANTIZED += [
    pytest.param(case, "nf4", marks=pytest.mark.heavy) for case in CASES if case != "lora"
]


@pytest.mark.parametrize(("case", "kind"), ON_QUANTIZED)
def test_adapters_on_a_quantized_base_train_in_float32_and_leave_its_bits_alone(case, kind):
    method = CASES[case].method
    shape = tiny.config(tie_embeddings=False, storage=quantization.PRESETS[kind])
    before = tree.flatten(tiny.attached(method, shape))
    losses, after = run_steps(method, shape)
    assert losses[2] < losses[0]
    trainable = set(methods.trainable(tiny.attached(method, shape), method))
    for name, leaf in before.items():
        assert np.array_equal(leaf, after[f"model/{name}"]) == (name not in trainable), name
        if name in trainable:
            assert leaf.dtype == np.float32
    moments = [leaf for name, leaf in after.items() if name.startswith("optimizer/")]
    assert all(leaf.dtype in (np.float32, np.int32) for leaf in moments)


@pytest.mark.heavy
def test_a_quantized_base_gives_the_same_on_any_mesh():
    shape = tiny.config(mlp_width=64, storage=((quantization.LINEARS, "nf4"),))
    losses, _ = run_steps(LoRA(rank=4), shape)
    again, after = run_steps(LoRA(rank=4), shape, MeshConfig(2, 2, 2))
    rounding.assert_close(again, losses, roundings=tiny.ROUNDINGS)
    codes = after["model/layers/0-2/mlp/up/kernel/codes"]
    assert codes.sharding.shard_shape(codes.shape) == (3, 8, 32)
