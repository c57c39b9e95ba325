"""Keys and values of tokens that were computed once: what decoding attends to.

Axis letters beside those of `research.models.transformer`: T stored tokens. Vectors lie by head,
[B,K,T,N], so that a product with them moves nothing in memory.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Literal

import jax
import jax.numpy as jnp

from research import sharding, tree
from research.batch import PADDING
from research.models.config import ModelConfig

# how vectors are stored: four bytes a number, two, or one and a scale for each vector
CacheKind = Literal["float32", "bfloat16", "int8"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Vectors:
    """Keys or values.

    Attributes:
      numbers: [...,B,K,T,N] float32, bfloat16, or int8 with a scale.
      scale: [...,B,K,T] float32, which int8 numbers are multiplied by; None for other types.
    """

    numbers: jax.Array
    scale: jax.Array | None = None

    def astype(self, kind: str) -> Vectors:
        """The same in another type; int8 takes the largest of a vector's N numbers as 127."""
        if self.scale is not None or self.numbers.dtype == kind:
            return self
        if kind != "int8":
            return Vectors(self.numbers.astype(kind))
        wide = self.numbers.astype(jnp.float32)
        scale = jnp.max(jnp.abs(wide), axis=-1) / 127
        numbers = jnp.round(wide / jnp.maximum(scale, 1e-30)[..., None])
        return Vectors(numbers.astype(jnp.int8), scale)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KeyValues:
    """What was computed of T tokens in each of B rows.

    Attributes:
      layers: stack key -> (keys, values), each [L,B,K,T,N].
      segments, positions: [B,T] int32 of the tokens; segment 0 marks an empty slot.
    """

    layers: dict[str, tuple[Vectors, Vectors]]
    segments: jax.Array
    positions: jax.Array

    def astype(self, kind: str) -> KeyValues:
        """The same in another type; see `Vectors.astype`."""
        layers = {
            name: (keys.astype(kind), values.astype(kind))
            for name, (keys, values) in self.layers.items()
        }
        return dataclasses.replace(self, layers=layers)

    @property
    def slots(self) -> int:
        """T."""
        return self.segments.shape[1]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """A ring of slots that all rows write at the same place: the oldest slot is overwritten next.

    Attributes:
      content: keys and values of the tokens so far.
      index: [] int32, the slot that is written next.
    """

    content: KeyValues
    index: jax.Array

    def append(self, new: KeyValues) -> Cache:
        """The cache with S new tokens of every row in the next slots.

        They must not go beyond the last slot where S > 1; a single token wraps around.
        """

        def write(rows: int, tokens: int, old: jax.Array, new: jax.Array) -> jax.Array:
            return jax.lax.dynamic_update_slice_in_dim(old, new, self.index, tokens)

        content = _map(write, self.content, new.astype(self.kind))
        return Cache(content, (self.index + new.slots) % self.content.slots)

    def insert(
        self,
        rows: jax.Array,
        new: KeyValues,
        counts: jax.Array,
        beginning: KeyValues | None = None,
    ) -> Cache:
        """The cache with other texts in some rows, whose last tokens lie where the ring ends.

        Args:
          rows: [b] int32, the rows to replace; those from B on are passed over.
          new: of b texts; tokens behind a text's end are left out.
          counts: [b] int32, tokens of each text, those of its beginning too; T at most.
          beginning: of one text, which stands in front of each.
        """
        slots = self.content.slots
        place = (jnp.arange(slots) - (self.index - counts[:, None])) % slots
        is_text = place < counts[:, None]

        def write(row_axis: int, tokens: int, old: jax.Array, *parts: jax.Array) -> jax.Array:
            shape = parts[-1].shape
            whole = [
                jnp.broadcast_to(part, (*shape[:tokens], part.shape[tokens], *shape[tokens + 1 :]))
                for part in parts
            ]
            texts = jnp.concatenate(whole, axis=tokens)
            axes = [axis for axis in range(old.ndim) if axis not in (row_axis, tokens)]
            index = jnp.expand_dims(jnp.minimum(place, texts.shape[tokens] - 1), axes)
            moved = jnp.take_along_axis(texts, index, axis=tokens)
            if old.ndim == 2:  # segments and positions: an empty slot is all zeros
                moved = jnp.where(is_text, moved, PADDING)
            where = (slice(None),) * row_axis + (rows,)
            return old.at[where].set(moved, mode="drop")

        parts = [part.astype(self.kind) for part in (beginning, new) if part is not None]
        return Cache(_map(write, self.content, *parts), self.index)

    def resize(self, slots: int) -> Cache:
        """The same in more slots, or in fewer, which hold the newest tokens."""

        def move(rows: int, tokens: int, old: jax.Array) -> jax.Array:
            in_order = jnp.roll(old, -self.index, tokens)
            more = slots - old.shape[tokens]
            if more <= 0:
                return jax.lax.slice_in_dim(in_order, -more, None, axis=tokens)
            return jnp.pad(in_order, [(more * (axis == tokens), 0) for axis in range(old.ndim)])

        return Cache(_map(move, self.content), jnp.zeros((), jnp.int32))

    @property
    def kind(self) -> str:
        """How its vectors are stored; see `CacheKind`."""
        keys, _ = next(iter(self.content.layers.values()))
        return keys.numbers.dtype.name


def empty(config: ModelConfig, stacks: Iterable[str], rows: int, slots: int, kind: str) -> Cache:
    """A cache of B = `rows` and T = `slots` without a token.

    Args:
      stacks: the keys of a model's stacks of layers.
      kind: see `CacheKind`.
    """

    def vectors(stack: str) -> Vectors:
        shape = (len(tree.stack_range(stack)), rows, config.kv_heads, slots, config.head_dim)
        scale = jnp.zeros(shape[:-1], jnp.float32) if kind == "int8" else None
        return Vectors(jnp.zeros(shape, kind), scale)

    layers = {stack: (vectors(stack), vectors(stack)) for stack in stacks}
    zeros = jnp.zeros((rows, slots), jnp.int32)
    return Cache(_map(lambda *part: part[-1], KeyValues(layers, zeros, zeros)), zeros[0, 0])


def _map(function: Callable[..., jax.Array], first: KeyValues, *others: KeyValues) -> KeyValues:
    """function(axis of rows, axis of tokens, array of each) of all arrays, with their shardings."""

    def of_vectors(*arrays: jax.Array) -> jax.Array:
        y = function(1, 3, *arrays)
        heads = "kv_heads" if y.shape[2] % sharding.shard_count("kv_heads") == 0 else None
        return sharding.constrain(y, (None, "batch", heads, None, None)[: y.ndim])

    layers = jax.tree.map(of_vectors, first.layers, *(other.layers for other in others))
    segments, positions = (
        sharding.constrain(function(0, 1, *arrays), ("batch", None))
        for arrays in (
            [part.segments for part in (first, *others)],
            [part.positions for part in (first, *others)],
        )
    )
    return KeyValues(layers, segments, positions)
