"""Content fingerprints of named arrays, the same on any mesh, host count and key order.

Every array is reduced on the devices that hold it to two 32-bit checksums, each a sum modulo
2**32 over elements of a hash of (bits, position). Sums of integers do not depend on the order of
addition, so sharding cannot change them, and only two words per array travel to the host. There,
SHA-256 joins names, shapes, dtypes and checksums.

A change confined to one element always changes both checksums, because each term is a bijection
of the element's bits. Any other change (two elements swapped, many changed) goes unseen with a
chance of about 2**-32 for a pair of positions and 2**-64 in general. This guards against
accidents and mix-ups, not against an adversary: the sums are not a cryptographic hash.
"""

import functools
import hashlib
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

# Name of the scheme, hashed first: it must change with any constant below.
_SCHEME = "graft-fingerprint-1"
# (seed, position multiplier, position shift, finalizer multipliers) of the two checksums. The
# finalizers are murmur3's fmix32 and Wellons' lowbias32, both bijections of 32-bit words.
_MIXES = (
    (0x9E3779B9, 0x85EBCA6B, 15, 0x85EBCA6B, 0xC2B2AE35),
    (0x243F6A88, 0xCC9E2D51, 14, 0x7FEB352D, 0x846CA68B),
)
# Bytes that are hashed at once.
_PART = 2**26
# Number of elements up to which NumPy is quicker than compiling a program for yet another shape.
_SMALL = 2**16


class Checksum(NamedTuple):
    """The identity of one array: its shape, its dtype's name and two 32-bit sums."""

    shape: tuple[int, ...]
    dtype: str
    sums: tuple[int, int]


def fingerprint(arrays: Mapping[str, ArrayLike]) -> str:
    """64 hex digits that identify the names, shapes, dtypes and bits of `arrays`.

    Takes JAX arrays under any sharding and NumPy arrays; equal content gives equal digits.
    In a run of several processes all of them call it with the same names.

    Raises:
      TypeError: an element type that has no fixed-width bits (objects, strings, key arrays).
    """
    return combine(checksums(arrays))


def combine(sums: Mapping[str, Checksum]) -> str:
    """The fingerprint of arrays with known checksums; reads no array."""
    digest = hashlib.sha256(_SCHEME.encode())
    for name in sorted(sums):
        shape, dtype, pair = sums[name]
        digest.update(json.dumps([name, list(shape), dtype, list(pair)]).encode() + b"\n")
    return digest.hexdigest()


def checksums(arrays: Mapping[str, ArrayLike]) -> dict[str, Checksum]:
    """The checksum of every array; takes the same arrays as `fingerprint`."""
    return fetch(dispatch(arrays))


def dispatch(arrays: Mapping[str, ArrayLike]) -> dict[str, tuple]:
    """Starts the checksums on the devices without waiting for them; `fetch` collects them.

    The arrays may be donated as soon as this returns. Names are visited in sorted order, so that
    all processes of a run start the same programs in the same order.
    """
    pending = {}
    for name in sorted(arrays):
        array = arrays[name]
        if not isinstance(array, jax.Array):
            array = np.asarray(array)
        shape, dtype = tuple(array.shape), array.dtype
        _check(name, shape, dtype)
        if isinstance(array, np.ndarray):
            array = array.astype(dtype.newbyteorder("="), copy=False)
            if dtype.itemsize == 8:  # JAX would cut these to 32 bits; split them here instead
                array = np.ascontiguousarray(array).view(np.uint32).reshape(*shape, 2)
        pending[name] = (shape, dtype.name, _in_parts(array))
        # XLA's CPU client hangs when 32 programs that talk across devices wait for each other.
        if len(pending) % 16 == 0 and jax.default_backend() == "cpu":
            jax.block_until_ready(pending[name][2])
    return pending


def _in_parts(array: jax.Array | np.ndarray) -> tuple[Any, Any]:
    """`_sums` of an array, or `_host_sums` of a small one on the host.

    Computed some rows at a time for an array on the host, and on CPU for one on a single device:
    XLA there keeps the hashes in memory, three times the size of the array. Sums do not depend on
    where an array is split.
    """
    if array.size <= _SMALL and array.dtype.itemsize * 8 == _width(array.dtype) <= 32:
        if isinstance(array, np.ndarray):
            return _host_sums(array)
        if array.is_fully_addressable and jax.default_backend() == "cpu":
            return _host_sums(np.asarray(array))
    length = array.shape[0] if array.ndim else 0
    rows = max(1, _PART * length // max(1, array.nbytes))
    is_local = isinstance(array, np.ndarray) or (
        jax.default_backend() == "cpu" and len(array.sharding.device_set) == 1
    )
    if rows >= length or not is_local:
        return _sums(array, 0)
    total = (jnp.uint32(0), jnp.uint32(0))
    for start in range(0, length, rows):
        count = min(rows, length - start)
        if isinstance(array, np.ndarray):
            part = _sums(array[start : start + count], start)
        else:
            part = _sums_of_rows(array, start, count)
        total = jax.block_until_ready((total[0] + part[0], total[1] + part[1]))
    return total


@functools.partial(jax.jit, static_argnames="rows")
def _sums_of_rows(array: jax.Array, start: ArrayLike, rows: int) -> tuple[jax.Array, jax.Array]:
    return _sums(lax.dynamic_slice_in_dim(array, start, rows), start)


def fetch(pending: Mapping[str, tuple]) -> dict[str, Checksum]:
    """Waits for the checksums that `dispatch` started."""
    sums = jax.device_get({name: pair for name, (_, _, pair) in pending.items()})
    return {
        name: Checksum(shape, dtype, (int(sums[name][0]), int(sums[name][1])))
        for name, (shape, dtype, _) in pending.items()
    }


def _check(name: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
    if jax.dtypes.issubdtype(dtype, jax.dtypes.extended):
        raise TypeError(
            f"cannot fingerprint {name!r}: it is an array of random keys; "
            "pass jax.random.key_data(...) of it"
        )
    if not any(jnp.issubdtype(dtype, kind) for kind in (jnp.bool_, jnp.integer, jnp.floating)):
        raise TypeError(
            f"cannot fingerprint {name!r}: element type {dtype}; "
            "expected booleans, integers or floating-point numbers"
        )
    # Positions are hashed axis by axis in 32 bits, so an array may have more than 2**32 elements
    # without 64-bit arithmetic, but no single axis may.
    if any(size > 2**32 for size in shape):
        raise ValueError(f"cannot fingerprint {name!r}: an axis of shape {shape} is over 2**32")


def _bits(array: jax.Array) -> jax.Array:
    """The elements as uint32 words; 64-bit elements become two words on a new last axis."""
    if array.dtype == jnp.bool_:
        return array.astype(jnp.uint32)
    word = jnp.dtype(f"uint{min(_width(array.dtype), 32)}")
    return lax.bitcast_convert_type(array, word).astype(jnp.uint32)


def _width(dtype: np.dtype) -> int:
    """Bits of an element."""
    if dtype == jnp.bool_:
        return 8
    info = jnp.iinfo if jnp.issubdtype(dtype, jnp.integer) else jnp.finfo
    return info(dtype).bits


def _positions(shape: tuple[int, ...], mix: tuple[int, ...], start: ArrayLike) -> jax.Array:
    """A 32-bit hash of every element's position, with rows counted from `start`.

    Within one row of the last axis all differ.
    """
    seed, multiplier, shift, *_ = (np.uint32(number) for number in mix)
    hashes = jnp.full(shape, seed, jnp.uint32)
    for axis in range(len(shape)):
        index = lax.broadcasted_iota(jnp.uint32, shape, axis)
        index = index + jnp.uint32(start) if axis == 0 else index
        hashes = (hashes ^ index) * multiplier
        hashes = hashes ^ (hashes >> shift)
    return hashes


@jax.jit
def _sums(array: jax.Array, start: ArrayLike) -> tuple[jax.Array, jax.Array]:
    """The two checksums of rows from `start` on, uint32 scalars.

    Without a reshape, which could move shards between devices.
    """
    bits = _bits(array)
    sums = []
    for mix in _MIXES:
        *_, first, second = (np.uint32(number) for number in mix)
        word = bits ^ _positions(bits.shape, mix, start)
        word = (word ^ (word >> np.uint32(16))) * first
        word = (word ^ (word >> np.uint32(13))) * second
        word = word ^ (word >> np.uint32(16))
        if word.ndim > 1:
            # Two reductions kept apart: XLA's CPU backend spreads the first over all cores.
            word = lax.optimization_barrier(word.sum(tuple(range(1, word.ndim)), dtype=jnp.uint32))
        sums.append(word.sum(dtype=jnp.uint32))
    return sums[0], sums[1]


def _host_sums(array: np.ndarray) -> tuple[int, int]:
    """`_sums` of a whole array in NumPy."""
    whole = np.ascontiguousarray(array).reshape(array.shape)
    bits = whole.view(f"u{array.dtype.itemsize}").astype(np.uint32)
    sums = []
    with np.errstate(over="ignore"):  # 32-bit words wrap around, those of scalars too
        for mix in _MIXES:
            seed, multiplier, shift, first, second = (np.uint32(number) for number in mix)
            hashes = np.full(bits.shape, seed, np.uint32)
            for axis in range(bits.ndim):
                shape = [1] * bits.ndim
                shape[axis] = -1
                index = np.arange(bits.shape[axis], dtype=np.uint32).reshape(shape)
                hashes = (hashes ^ index) * multiplier
                hashes = hashes ^ (hashes >> shift)
            word = bits ^ hashes
            word = (word ^ (word >> np.uint32(16))) * first
            word = (word ^ (word >> np.uint32(13))) * second
            word = word ^ (word >> np.uint32(16))
            sums.append(int(word.sum(dtype=np.uint32)))
    return sums[0], sums[1]
