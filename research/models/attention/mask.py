"""Who may see whom: one rule, from segments, positions, prefix and window."""

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
    """S queries and T keys of B rows.

    Attributes:
      segments, positions: [B,S] int32 of the queries.
      key_segments, key_positions: [B,T] int32 of the keys.
      key_prefix: [B,T] bool or None; keys that their whole document sees (prefix-LM).
      window: how many tokens back a query sees, itself included; 0 for all. Shared keys are seen
        from anywhere.
      shared: whether some key may be a shared one.
    """

    segments: jax.Array
    positions: jax.Array
    key_segments: jax.Array
    key_positions: jax.Array
    key_prefix: jax.Array | None = None
    window: int = 0
    shared: bool = True

    def allowed(self) -> jax.Array:
        """[B,S,T] bool: the same document (or a shared key), not padding, not in the future."""
        query, key = self.segments[:, :, None], self.key_segments[:, None, :]
        at, other = self.positions[:, :, None], self.key_positions[:, None, :]
        seen = other <= at
        if self.window:
            seen &= (other > at - self.window) | (key == SHARED)
        if self.key_prefix is not None:
            seen |= self.key_prefix[:, None, :]
        return seen & ((query == key) | (key == SHARED)) & (key != PADDING)
