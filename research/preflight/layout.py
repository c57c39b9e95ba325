"""The sharding of every array of a run, as text that a person can check."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

from research import tree
from research.runtime.memory import GIB

if TYPE_CHECKING:
    from jax.sharding import NamedSharding

    from research.training.program import Program


def describe(program: Program) -> str:
    """One line an array: its name, type, axes with the mesh axes that cut each, bytes of a device.

    `[4096/fsdp, 14336/tensor]` is cut over both; an axis without a mesh axis is whole everywhere.
    """
    lines = [" x ".join(f"{axis} {size}" for axis, size in program.mesh.shape.items())]
    state = tree.flatten(program.state_shapes)
    batch = tree.flatten(program.batch_shapes)
    # by its first part: model, optimizer, step
    for part, names in itertools.groupby(state, key=lambda name: name.partition("/")[0]):
        lines += _lines(part, {name: (state[name], program.shardings[name]) for name in names})
    lines += _lines(
        "batch", {f"batch/{n}": (leaf, program.batch_sharding) for n, leaf in batch.items()}
    )
    return "\n".join(lines) + "\n"


def _lines(part: str, leaves: dict[str, tuple[Any, NamedSharding]]) -> list[str]:
    rows, total = [], 0
    for name, (leaf, sharding) in leaves.items():
        size = math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        total += size
        mesh_axes = [*sharding.spec, *(None,) * (len(leaf.shape) - len(sharding.spec))]
        axes = ", ".join(
            f"{length}/{axis if isinstance(axis, str) else '*'.join(axis)}" if axis else str(length)
            for length, axis in zip(leaf.shape, mesh_axes, strict=True)
        )
        rows.append((name, str(leaf.dtype), f"[{axes}]", f"{size:,}"))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    return [
        f"\n{part}: {total / GIB:.3f} GiB a device",
        *(
            f"{name:{widths[0]}}  {dtype:{widths[1]}}  {axes:{widths[2]}}  {size:>{widths[3]}}"
            for name, dtype, axes, size in rows
        ),
    ]
