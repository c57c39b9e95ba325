"""Attention backends against the plain one, for every mask that they take."""

import contextlib
import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import sharding
from research.batch import SHARED
from research.models import attention
from research.models.attention import BACKENDS, Mask
from tests.helpers import rounding


def case(extra=0, window=0, prefix=False, s=130, heads=(4, 2, 8), dtype=jnp.float32):
    """Two packed documents and padding; `extra` shared keys in front; s = 130 is three blocks."""
    random = np.random.default_rng(0)
    h, k, n = heads
    query = jnp.asarray(random.normal(size=(2, s, h, n)), dtype)
    key, value = jnp.asarray(random.normal(size=(2, 2, s + extra, k, n)), dtype)
    segments = np.repeat([[1] * 50 + [2] * (s - 60) + [0] * 10], 2, 0)
    positions = np.concatenate([np.arange(50), np.arange(s - 60), np.zeros(10, int)])
    positions = np.repeat(positions[None], 2, 0)
    front = ((0, 0), (extra, 0))
    keys = np.pad(segments, front, constant_values=SHARED)
    mask = Mask(segments, positions, keys, np.pad(positions, front, constant_values=-1))
    first = np.pad((positions < 9) & (segments > 0), front)
    mask = dataclasses.replace(mask, window=window, key_prefix=first if prefix else None)
    return query, key, value, mask


def gradients(backend, query, key, value, mask):
    """The output and the gradients of query, key and value; padding does not count."""
    real = (mask.segments > 0)[..., None, None]

    def total(query, key, value):
        out = backend(query, key, value, mask).astype(jnp.float32) * real
        return jnp.sum(jnp.sin(out)), out

    return jax.jit(jax.grad(total, (0, 1, 2), has_aux=True))(query, key, value)


CAUSAL = [{}, {"extra": 6}, {"window": 20}, {"window": 20, "extra": 6}]
MASKS = [*CAUSAL, {"prefix": True}]


@pytest.mark.parametrize("mask", CAUSAL, ids=str)
def test_blocked_equals_plain_in_value_and_gradient(mask):
    assert_equals_plain("blocked", case(**mask))


def test_blocked_caps_scores_as_plain_does():
    assert_equals_plain("blocked", case(window=20), cap=0.5)
    uncapped, soft_capped = (BACKENDS["plain"].attention(*case(), cap=cap) for cap in (0.0, 0.5))
    assert np.abs(uncapped - soft_capped).max() > 0.01


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("mask", MASKS, ids=str)
def test_cudnn_equals_plain_in_value_and_gradient(mask):
    # probabilities, outputs and their gradients are rounded; outputs are means of numbers of size 1
    close = {"roundings": 4, "scale": 1, "unit": rounding.BFLOAT16}
    assert_equals_plain("cudnn", case(**mask, dtype=jnp.bfloat16), **close)


def assert_equals_plain(name, arguments, cap=0.0, **close):
    query, key, _, mask = arguments
    assert BACKENDS[name].refuses(query, key, mask, cap) is None
    attends = [functools.partial(BACKENDS[b].attention, cap=cap) for b in (name, "plain")]
    assert_close(*(gradients(attend, *arguments) for attend in attends), **close)


def assert_close(actual, expected, **close):
    """Sums over a head's numbers and, twice, over the keys; and as much for either gradient."""
    _, length, _, size = jax.tree.leaves(actual)[0].shape
    close = {"roundings": 3 * (size + 2 * length)} | close
    jax.tree.map(functools.partial(rounding.assert_close, **close), actual, expected)


@pytest.mark.parametrize("mask", MASKS, ids=str)
def test_cudnn_lowers_for_cuda_in_both_directions(mask, monkeypatch):
    """Without a GPU: JAX's own checks pass, and the program calls cuDNN's two kernels."""
    from jax._src.cudnn import fused_attention_stablehlo as fused

    monkeypatch.setattr(fused, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    query, key, value, what = case(**mask, dtype=jnp.bfloat16, heads=(8, 2, 64))
    assert BACKENDS["cudnn"].refuses(query, key, what, 0.0) is None
    assert "soft cap" in BACKENDS["cudnn"].refuses(query, key, what, 1.0)

    def total(query, key, value):
        return jnp.sum(BACKENDS["cudnn"].attention(query, key, value, what).astype(jnp.float32))

    program = jax.jit(jax.grad(total, (0, 1, 2))).trace(query, key, value)
    text = program.lower(lowering_platforms=("cuda",)).as_text()
    assert "__cudnn$fmhaScaleBiasSoftmax" in text and "__cudnn$fmhaScaleBiasSoftmaxBackward" in text


def test_a_refused_mask_is_computed_by_plain_with_a_warning():
    arguments = case(prefix=True)
    with pytest.warns(UserWarning, match="'blocked' has no bidirectional prefix; the plain one"):
        out = attention.attention("blocked", *arguments)
    np.testing.assert_array_equal(out, BACKENDS["plain"].attention(*arguments))
    if jax.default_backend() == "cpu":
        with pytest.warns(UserWarning, match="'cudnn' runs on NVIDIA GPUs, not on cpu"):
            attention.attention("cudnn", *case())


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="the fastest on CPUs")
def test_auto_is_the_platforms_fastest(recwarn):
    arguments = case()
    fastest = BACKENDS["blocked"].attention(*arguments)
    np.testing.assert_array_equal(attention.attention("auto", *arguments), fastest)
    assert not recwarn.list


def splash_case(s=256, **changes):
    """A case of whole lanes in which no key is shared."""
    query, key, value, mask = case(s=s, **changes)
    return query, key, value, dataclasses.replace(mask, shared=False)


@pytest.mark.parametrize("changes", [{}, {"window": 70}, {"heads": (4, 4, 128)}], ids=str)
@pytest.mark.parametrize("cap", [0.0, 0.5])
def test_splash_interpreted_equals_plain_in_value_and_gradient(changes, cap):
    assert_close(*splash_and_plain(splash_case(**changes), cap))


@pytest.mark.heavy
def test_splash_interpreted_in_bfloat16_is_as_close_to_exact_values_as_plain_is():
    narrow = splash_case(dtype=jnp.bfloat16)
    wide = (*(x.astype(jnp.float32) for x in narrow[:3]), narrow[3])
    exact = gradients(BACKENDS["plain"].attention, *wide)
    splash, plain = splash_and_plain(narrow)

    def largest_error(results):
        return max(
            float(jnp.abs(a.astype(jnp.float32) - b).max())
            for a, b in zip(jax.tree.leaves(results), jax.tree.leaves(exact), strict=True)
        )

    assert jax.tree.leaves(splash)[0].dtype == jnp.bfloat16
    # both round the same numbers; 0.1 are a few roundings in bfloat16 of numbers near 4
    assert 0 < largest_error(splash) < 1.5 * largest_error(plain) < 0.1


def splash_and_plain(arguments, cap=0.0, over=contextlib.nullcontext):
    """Gradients and outputs of both; the kernel is interpreted, in the context `over`."""
    attend = functools.partial(BACKENDS["splash"].attention, interpret=True, cap=cap)
    with over():
        splash = gradients(attend, *arguments)
    plain = functools.partial(BACKENDS["plain"].attention, cap=cap)
    return splash, gradients(plain, *arguments)


@pytest.mark.parametrize(
    ("mesh", "length", "window"),
    [
        ((1, 2, 2), 256, 0),
        ((2, 1, 1, 4), 512, 0),
        ((2, 1, 1, 4), 1024, 0),
        ((1, 2, 2, 2), 512, 0),
        ((2, 1, 1, 4), 1024, 200),
    ],
    ids=str,
)
def test_splash_on_a_mesh_assert_equals_plain(mesh, length, window):
    """Rows over `fsdp`, heads over `tensor`, queries over `sequence`, swapped where halves of a
    device's shard are multiples of LANES and there is no window; all keys on all devices."""
    devices = jax.devices()[: math.prod(mesh)]
    over = functools.partial(
        sharding.mesh_context, sharding.MeshConfig(*mesh).make(devices), sharding.RULES
    )
    assert_close(*splash_and_plain(splash_case(length, window=window), over=over))


def test_devices_that_share_a_row_compute_the_same_number_of_blocks():
    splash = BACKENDS["splash"]

    def block_counts(order):
        kernel = splash._kernel(4096, 2, 4, 0, 0.0, True, order)
        by_device = np.split(np.asarray(kernel.fwd_mask_info.block_mask), 4, axis=-2)
        return [np.count_nonzero(blocks) for blocks in by_device]

    in_order, even = block_counts(None), block_counts(splash._order(4096, 4))
    assert in_order[3] > 3 * in_order[0]
    assert max(even) == min(even) and sum(even) == sum(in_order)


def test_splash_refuses_with_a_reason(monkeypatch):
    query, key, _, mask = splash_case()
    refuses = BACKENDS["splash"].refuses
    assert refuses(query, key, mask, 0.0) == "runs on TPUs, not on cpu"
    monkeypatch.setattr(sharding, "platform", lambda: "tpu")
    assert refuses(query, key, mask, 0.0) is None
    assert "keys that all documents share" in refuses(*case(s=256)[:2], case(s=256)[3], 0.0)
    prefix_mask = splash_case(prefix=True)[3]
    assert "bidirectional prefix" in refuses(query, key, prefix_mask, 0.0)
    assert "a multiple of 128, not 250" in refuses(query[:, :250], key[:, :250], mask, 0.0)
    with sharding.mesh_context(sharding.MeshConfig(2, 1, 4).make(), sharding.RULES):
        assert "4 devices (mesh.tensor) divide, not 2" in refuses(query, key, mask, 0.0)
