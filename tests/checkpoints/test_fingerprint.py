"""Fingerprints: which changes they show, and which they must not."""

import hypothesis.extra.numpy as numpy_strategies
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from research.checkpoints import fingerprint as fp


@pytest.fixture(scope="module", autouse=True, params=[0, fp._SMALL], ids=["compiled", "numpy"])
def small(request):
    """Small arrays by a compiled program, and in NumPy: the digits are the same."""
    before, fp._SMALL = fp._SMALL, request.param
    yield
    fp._SMALL = before


# Few shapes, because every new one compiles a program.
SHAPES = [(), (7,), (4, 6), (2, 3, 5)]
DTYPES = ["float32", "bfloat16", "float16", "int8", "uint8", "int32", "bool", "int4", "uint4",
          "float8_e4m3fn", "int64", "float64"]  # fmt: skip
arrays = st.builds(
    lambda shape, dtype, seed: _random(shape, dtype, seed),
    st.sampled_from(SHAPES),
    st.sampled_from(DTYPES),
    st.integers(0, 2**32 - 1),
)


def _random(shape, dtype, seed):
    values = np.random.default_rng(seed).integers(0, 8, shape)
    return np.asarray(values).astype(jnp.dtype(dtype))


def _mesh(*shape):
    axes = ("data", "tensor")[: len(shape)]
    return jax.make_mesh(shape, axes, axis_types=(AxisType.Auto,) * len(shape))


@settings(max_examples=25, deadline=None)
@given(arrays, st.data())
def test_one_flipped_bit_changes_the_fingerprint(array, data):
    other = array.copy()
    position = data.draw(st.integers(0, array.size - 1))
    if array.dtype.name in ("int4", "uint4", "bool"):  # stored in one byte each by NumPy
        flat = other.reshape(-1)
        flat[position] = other.dtype.type((int(flat[position]) + 1) % 2)
    else:
        raw = other.reshape(-1).view(np.uint8)
        raw[data.draw(st.integers(0, raw.size - 1))] ^= np.uint8(1 << data.draw(st.integers(0, 7)))
    before, after = fp.checksums({"a": array})["a"], fp.checksums({"a": other})["a"]
    assert fp.fingerprint({"a": array}) != fp.fingerprint({"a": other})
    if array.dtype.itemsize < 8:  # one 32-bit word: a change always changes both sums
        assert before.sums[0] != after.sums[0] and before.sums[1] != after.sums[1]


@settings(max_examples=25, deadline=None)
@given(numpy_strategies.arrays(np.float32, (4, 6), elements=st.integers(0, 3)), st.data())
def test_swapping_two_unequal_elements_changes_the_fingerprint(array, data):
    positions = st.integers(0, array.size - 1)
    first, second = data.draw(positions), data.draw(positions)
    other = array.copy().reshape(-1)
    other[[first, second]] = other[[second, first]]
    other = other.reshape(array.shape)
    is_same = np.array_equal(array, other)
    assert (fp.fingerprint({"a": array}) == fp.fingerprint({"a": other})) == is_same


def test_name_shape_dtype_and_sign_of_zero_count():
    ones = np.ones((4, 6), np.float32)
    variants = [
        {"a": ones},
        {"b": ones},
        {"a": ones.reshape(6, 4)},
        {"a": ones.reshape(4, 6, 1)},
        {"a": ones.view(np.int32)},
        {"a": ones, "b": ones},
        {"a": ones * 0},
        {"a": ones * -0.0},
        {"a": np.zeros((0, 6), np.float32)},
        {},
    ]
    assert len({fp.fingerprint(variant) for variant in variants}) == len(variants)


def test_key_order_and_the_kind_of_array_do_not_count():
    a, b = _random((4, 6), "bfloat16", 1), _random((7,), "int4", 2)
    expected = fp.fingerprint({"a": a, "b": b})
    assert fp.fingerprint({"b": b, "a": a}) == expected
    assert fp.fingerprint({"a": jnp.asarray(a), "b": jnp.asarray(b)}) == expected
    big_endian = np.arange(6, dtype=">i4")
    assert fp.fingerprint({"a": big_endian}) == fp.fingerprint({"a": jnp.arange(6)})
    assert fp.fingerprint({"a": a.T.copy().T}) == fp.fingerprint({"a": a})


def test_64_bit_numpy_and_jax_arrays_agree():
    values = np.random.default_rng(0).standard_normal((4, 6)) * 2.0**40
    for array in (values, values.astype(np.int64)):
        expected = fp.fingerprint({"a": array})
        with jax.enable_x64(True):
            assert fp.fingerprint({"a": jnp.asarray(array)}) == expected
        assert fp.fingerprint({"a": array.astype(np.float32)}) != expected


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int4"])
def test_sharding_and_mesh_do_not_count(dtype):
    array = _random((16, 8), dtype, 3)
    expected = fp.fingerprint({"a": array})
    placements = [
        (_mesh(8), P("data")),
        (_mesh(8), P(None, "data")),
        (_mesh(8), P()),
        (_mesh(4, 2), P("data", "tensor")),
        (_mesh(2, 4), P("tensor", "data")),
        (_mesh(2, 4), P(("data", "tensor"))),
    ]
    for mesh, spec in placements:
        on_mesh = jax.device_put(array, NamedSharding(mesh, spec))
        assert fp.fingerprint({"a": on_mesh}) == expected, (mesh.shape, spec)


@pytest.mark.parametrize("shape", [(1000,), (37, 50), (5, 3, 40)])
def test_where_a_large_array_is_split_does_not_count(shape, monkeypatch):
    array = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
    whole = fp.checksums({"x": array})
    monkeypatch.setattr(fp, "_PART", 600)
    assert fp.checksums({"x": array}) == whole
    assert fp.checksums({"x": np.asarray(array)}) == whole


def test_no_shard_is_gathered():
    array = jax.device_put(
        np.ones((64, 32), np.float32), NamedSharding(_mesh(4, 2), P("data", "tensor"))
    )
    program = fp._sums.lower(array, 0).compile().as_text()
    assert "all-reduce" in program
    assert not any(word in program for word in ("all-gather", "all-to-all", "collective-permute"))


def test_positions_differ_beyond_32_bits_of_linear_index():
    # Rows of 2**16 elements: row r + 2**16 starts 2**32 elements after row r. Their hashes are
    # recomputed here in plain Python, as the array itself would need 16 GiB.
    def position_hash(mix, *index):
        seed, multiplier, shift, *_ = mix
        for number in index:
            seed = (seed ^ number) * multiplier % 2**32
            seed ^= seed >> shift
        return seed

    for mix in fp._MIXES:
        table = np.asarray(fp._positions((3, 5, 4), mix, 0))
        assert all(int(table[i]) == position_hash(mix, *i) for i in np.ndindex(3, 5, 4))
        assert np.unique(table).size == table.size
        for row in range(100):
            assert position_hash(mix, row, 9) != position_hash(mix, row + 2**16, 9)
    with pytest.raises(ValueError, match="'a'.*over 2\\*\\*32"):
        fp._check("a", (2**33,), np.dtype(np.int8))
    fp._check("a", (2**20, 2**20), np.dtype(np.int8))


def test_checksums_started_before_a_donation_see_the_old_values():
    old = {str(i): jnp.full((256, 256), i, jnp.float32) for i in range(8)}
    expected = fp.fingerprint({name: np.array(array) for name, array in old.items()})
    overwrite = jax.jit(lambda tree: jax.tree.map(lambda a: a * 0 - 1, tree), donate_argnums=0)
    pending = fp.dispatch(old)
    new = overwrite(old)
    assert fp.combine(fp.fetch(pending)) == expected != fp.fingerprint(new)


def test_arrays_without_plain_bits_are_refused_by_name():
    for bad in (jax.random.key(0), np.array(["text"]), np.array([None]), np.complex64(1)):
        with pytest.raises(TypeError, match="'odd'"):
            fp.fingerprint({"odd": bad})


def test_the_scheme_is_stable_across_versions():
    # Fingerprints are stored in checkpoints: a change of this value orphans them all.
    digits = fp.fingerprint({"w": np.arange(12, dtype=np.float32).reshape(3, 4), "s": np.int32(5)})
    assert digits == "47e0c4db85ba1842f1d52d56d484456627cd6b5cd0be896a36a4d31febd7f764"
