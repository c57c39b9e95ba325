"""The attention mask: one rule from segments, positions, prefix and window."""

from __future__ import annotations

import dataclasses
import functools

import jax

from research.batch import PADDING, SHARED


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["segments", "positions", "key_segments", "key_positions", "key_prefix"],
    meta_fields=["window", "shared"],
)
@dataclasses.dataclass(frozen=True)
class Mask:
    """Which of T keys each of S queries attends to, in B rows.

    Attributes:
      segments, positions: [B,S] int32 of the queries.
      key_segments, key_positions: [B,T] int32 of the keys.
      key_prefix: [B,T] bool or None; keys that their whole document attends to (prefix-LM).
      window: number of tokens back that a query attends to, itself included; 0 for all. Shared keys
        are in every window.
      shared: whether some key may be a shared one.
    """

    segments: jax.Array
    positions: jax.Array
    key_segments: jax.Array
    key_positions: jax.Array
    key_prefix: jax.Array | None = None
    window: int = 0
    shared: bool = True

    def to_array(self) -> jax.Array:
        """[B,S,T] bool: the same document (or a shared key), not padding, not in the future."""
        segment, key_segment = self.segments[:, :, None], self.key_segments[:, None, :]
        position, key_position = self.positions[:, :, None], self.key_positions[:, None, :]
        mask = key_position <= position
        if self.window:
            mask &= (key_position > position - self.window) | (key_segment == SHARED)
        if self.key_prefix is not None:
            mask |= self.key_prefix[:, None, :]
        same_document = (segment == key_segment) | (key_segment == SHARED)
        return mask & same_document & (key_segment != PADDING)
