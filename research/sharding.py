"""The device mesh, and the rules that map each logical axis of an array to mesh axes.

Axes of the mesh: `data` (replicas of the model, and all slices of a cluster), `fsdp` (batch rows
and weights both), `sequence` (the tokens of a row, and weights), `tensor` (heads, feed-forward and
vocabulary). Every parameter names its logical axes in its metadata; `rules` translate them, first
match wins, None replicates.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import linen
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from research import tree

Rules = tuple[tuple[str, str | tuple[str, ...] | None], ...]
AnyMesh = Mesh | AbstractMesh

RULES: Rules = (
    ("batch", ("data", "fsdp")),
    ("sequence", "sequence"),
    ("vocabulary", "tensor"),
    ("heads", "tensor"),
    ("kv_heads", "tensor"),
    ("mlp", "tensor"),
    ("embed", ("fsdp", "sequence")),
    ("layers", None),
    ("adapters", None),
    ("norm", None),
    ("rank", None),
)
HOST = "pinned_host"  # JAX's name for host memory that the devices can reach
# From the axis with the least communication to the one with the most, which neighbours share.
AXES = ("data", "fsdp", "sequence", "tensor")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Number of devices of a slice along each axis; one of them may be -1, which takes the rest.

    Several slices are replicas of each other, along `data`, so that the same config runs on one
    slice and on many.
    """

    # replicas that share nothing but gradients
    data: int = -1
    # devices that share rows and weights (ZeRO-3)
    fsdp: int = 1
    # devices that share heads and feed-forward width
    tensor: int = 1
    # devices that share the tokens of a row ("context parallel"), and weights
    sequence: int = 1

    def sizes(self, devices: int, slices: int = 1) -> tuple[int, ...]:
        """The mesh's size along each of `AXES`, over the devices of all slices.

        Raises:
          ValueError: the axes do not fit the number of devices of a slice.
        """
        sizes = [self.data, self.fsdp, self.sequence, self.tensor]
        description = f"mesh data={self.data} fsdp={self.fsdp} tensor={self.tensor}"
        description += f" sequence={self.sequence}" if self.sequence != 1 else ""
        if sizes.count(-1) > 1 or any(size == 0 or size < -1 for size in sizes):
            raise ValueError(f"{description}: sizes are positive; at most one is -1 (all the rest)")
        fixed = math.prod(size for size in sizes if size != -1)
        if devices % (fixed * slices) or (-1 not in sizes and fixed * slices != devices):
            within = f" in {slices} slices (a mesh is that of one)" if slices > 1 else ""
            raise ValueError(f"{description} does not fit {devices} devices{within}")
        data, *rest = (devices // slices // fixed if size == -1 else size for size in sizes)
        return (slices * data, *rest)

    def make(self, devices: Sequence[jax.Device] | None = None) -> Mesh:
        """The mesh over all devices.

        Raises:
          ValueError: the axes do not fit them.
        """
        devices = jax.devices() if devices is None else list(devices)
        slices = count_slices(devices)
        sizes = self.sizes(len(devices), slices)
        automatic = (AxisType.Auto,) * len(AXES)  # XLA shards what we do not
        try:
            if slices == 1 and devices[0].platform == "tpu":
                return jax.make_mesh(sizes, AXES, axis_types=automatic, devices=devices)
            if slices == 1:  # jax.make_mesh refuses GPUs of several hosts
                grid = mesh_utils.create_device_mesh(sizes, devices)
            else:
                inside, across = (sizes[0] // slices, *sizes[1:]), (slices, 1, 1, 1)
                grid = mesh_utils.create_hybrid_device_mesh(inside, across, devices)
            return Mesh(grid, AXES, axis_types=automatic)
        except NotImplementedError as error:
            size = "mesh " + " ".join(f"{a}={n}" for a, n in zip(AXES, sizes, strict=True) if n > 1)
            raise ValueError(
                f"{size} does not lie on these chips' torus: the size of an axis must be a product "
                f"of whole sides of it (of 4x4x4: 4, 16 or 64). {error}"
            ) from None

    def abstract(self, devices: int, slices: int = 1) -> AbstractMesh:
        """The mesh of devices of which only the number is known: for planning."""
        return AbstractMesh(self.sizes(devices, slices), AXES)


def one_device() -> tuple[Mesh, Rules]:
    """A mesh of this process's first device, and the default rules."""
    return MeshConfig().make(jax.local_devices()[:1]), RULES


def count_slices(devices: Sequence[jax.Device]) -> int:
    """Number of TPU slices among the devices. Hosts of GPUs, which JAX calls slices too, count as
    one: weights may be sharded between them."""
    return len({getattr(d, "slice_index", 0) if d.platform == "tpu" else 0 for d in devices})


def spec(axes: tuple[str | None, ...], rules: Rules) -> PartitionSpec:
    """The mesh axes of an array with these logical axes.

    Raises:
      ValueError: a logical axis that no rule names.
    """
    names = {name for name, _ in rules}
    unknown = [axis for axis in axes if axis is not None and axis not in names]
    if unknown:
        raise ValueError(f"the sharding rules name no axis {unknown[0]!r}; they name {names}")
    return linen.logical_to_mesh_axes(axes, rules)


def shardings(
    axes: Mapping[str, tuple[str | None, ...]],
    shapes: Mapping[str, Any],
    mesh: AnyMesh,
    rules: Rules,
) -> dict[str, NamedSharding]:
    """The sharding of each named array.

    An axis of an attached parameter that does not divide by the size of its mesh axes is
    replicated: it is small, and a rank need not fit the mesh.

    Raises:
      ValueError: the length of an axis of the base does not divide by the size of its mesh axes.
    """
    result = {}
    for name, logical in axes.items():
        entries = list(spec(logical, rules))
        lengths = zip(shapes[name].shape, logical, strict=False)
        for index, (length, axis) in enumerate(lengths):
            size = math.prod(mesh.shape[mesh_axis] for mesh_axis in _as_tuple(entries[index]))
            if length % size and tree.is_attached(name):
                entries[index] = None
            elif length % size:
                raise ValueError(
                    f"{name}: axis {axis!r} of length {length} does not divide by {size} devices "
                    f"(mesh axis {entries[index]!r}); change the mesh or the rule for {axis!r}"
                )
        result[name] = NamedSharding(mesh, PartitionSpec(*entries))
    return result


def state_shardings(
    shapes: Mapping[str, Any], parameters: Mapping[str, NamedSharding], mesh: AnyMesh
) -> dict[str, NamedSharding]:
    """The sharding of every leaf of a train state.

    Args:
      shapes: abstract leaves by name, `model/NAME`, `optimizer/NAME/...`,
        `memory/NAME/...`, `average/NAME`, `step`.
      parameters: the model's shardings by NAME.

    A leaf of optimizer or memory with as many axes as its parameter is sharded as that along each
    axis of the same length: moments, and those of low rank. Counts and other factors are small and
    replicated.
    """
    replicated = NamedSharding(mesh, PartitionSpec())
    result = {name: replicated for name in shapes}
    result |= {f"model/{name}": parameters[name] for name in parameters}
    for name, shape in shapes.items():
        kind, _, owner = name.partition("/")
        while owner and owner not in parameters:
            owner = owner.rpartition("/")[0]
        is_of_parameter = kind in ("optimizer", "memory", "average") and owner
        if is_of_parameter:
            result[name] = _along(parameters[owner], shapes[f"model/{owner}"].shape, shape.shape)
    return result


def _along(
    parameter: NamedSharding, parameter_shape: tuple[int, ...], shape: tuple[int, ...]
) -> NamedSharding:
    """A parameter's sharding for an array, along the axes that the two have in common."""
    if shape == parameter_shape:
        return parameter
    if len(shape) != len(parameter_shape):
        return NamedSharding(parameter.mesh, PartitionSpec())
    axes = itertools.zip_longest(parameter.spec, parameter_shape, shape)
    spec = [entry if length == full else None for entry, full, length in axes]
    return NamedSharding(parameter.mesh, PartitionSpec(*spec))


def host_shardings(
    patterns: Sequence[str], leaves: Mapping[str, Any], shardings: Mapping[str, NamedSharding]
) -> dict[str, NamedSharding]:
    """Shardings in the host's memory for the optimizer's arrays that match the patterns.

    Raises:
      ValueError: a pattern that matches none of them.
    """
    arrays = [name for name, leaf in leaves.items() if name.startswith("optimizer/") and leaf.ndim]
    tree.check_patterns(patterns, arrays, "offload")
    rules = tuple((pattern, True) for pattern in patterns)
    matched_names = [name for name in arrays if tree.match(rules, name, False)]
    return {name: shardings[name].with_memory_kind(HOST) for name in matched_names}


def to_device(arrays: Any, shardings: Any) -> Any:
    """Under jit: moves the arrays in the host's memory to the devices."""

    def move(x: jax.Array, sharding: NamedSharding) -> jax.Array:
        return jax.device_put(x, jax.memory.Space.Device) if sharding.memory_kind == HOST else x

    return jax.tree.map(move, arrays, shardings)


def layer_shardings(names: list[str], stack: NamedSharding) -> dict[str, NamedSharding]:
    """The shardings of the single layers of a stacked leaf."""
    return {name: NamedSharding(stack.mesh, PartitionSpec(*stack.spec[1:])) for name in names}


def shard_any_axis(shapes: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes with shardings over all devices: each array along its first axis whose length
    they divide. For arrays that are only read and written."""
    devices = np.asarray(jax.devices())
    mesh = Mesh(devices, ("all",))

    def with_sharding(shape: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        axis = next((i for i, n in enumerate(shape.shape) if n % devices.size == 0), None)
        entries = [] if axis is None else [None] * axis + ["all"]
        sharding = NamedSharding(mesh, PartitionSpec(*entries))
        return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)

    return {name: with_sharding(shape) for name, shape in shapes.items()}


def _as_tuple(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """An entry of a PartitionSpec as a tuple of mesh axes."""
    return () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)


def batch_sharding(mesh: AnyMesh, rules: Rules) -> NamedSharding:
    """Rows over the batch's mesh axes, other axes replicated."""
    return NamedSharding(mesh, spec(("batch",), rules))


def batch_shards(mesh: AnyMesh, rules: Rules) -> int:
    """Number of shards of the batch's rows."""
    axes = _as_tuple(batch_sharding(mesh, rules).spec[0])
    return math.prod(mesh.shape[axis] for axis in axes)


def local_rows(sharding: NamedSharding, rows: int) -> np.ndarray:
    """Indices of the rows, out of `rows`, that lie on this process's devices, ascending."""
    indices = sharding.addressable_devices_indices_map((rows,)).values()
    return np.unique(np.concatenate([np.arange(rows)[index] for index in indices]))


def place_rows(batch: Any, sharding: NamedSharding, row_indices: np.ndarray, rows: int) -> Any:
    """Global arrays [rows,...] from leaves that hold this process's rows, see `local_rows`."""

    def place(leaf: np.ndarray) -> jax.Array:
        def shard(index: Any) -> np.ndarray:
            first, last, _ = index[0].indices(rows)
            # the rows of a device follow each other
            start = int(np.searchsorted(row_indices, first))
            return leaf[start : start + last - first]

        return jax.make_array_from_callback((rows, *leaf.shape[1:]), sharding, shard)

    return jax.tree.map(place, batch)


@contextlib.contextmanager
def mesh_context(mesh: Mesh, rules: Rules) -> Iterator[None]:
    """Sets the mesh and the rules that `constrain` follows while tracing."""
    with jax.set_mesh(mesh), linen.logical_axis_rules(rules):
        yield


def platform() -> str:
    """The platform that is compiled for, such as `tpu`: the current mesh's, else this machine's."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def current_spec(axes: tuple[str | None, ...]) -> PartitionSpec:
    """`spec` by the rules that `mesh_context` has set."""
    return spec(axes, linen.get_logical_axis_rules())


def has_rules() -> bool:
    """Whether arrays are sharded by rules: inside `mesh_context`, and not where each device works
    on its own."""
    return bool(linen.get_logical_axis_rules()) and not jax.sharding.get_abstract_mesh().empty


def mesh_axes(logical: str) -> tuple[str, ...]:
    """The mesh axes, of more than one device, of a logical axis; none outside `mesh_context`."""
    if not has_rules():
        return ()
    mesh, rules = jax.sharding.get_abstract_mesh(), linen.get_logical_axis_rules()
    return tuple(axis for axis in _as_tuple(spec((logical,), rules)[0]) if mesh.shape[axis] > 1)


def shard_count(logical: str) -> int:
    """Number of shards of a logical axis."""
    return math.prod(jax.sharding.get_abstract_mesh().shape[axis] for axis in mesh_axes(logical))


def constrain(x: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
    """Pins an activation's sharding; does nothing outside `mesh_context`."""
    if not has_rules():
        return x
    return jax.lax.with_sharding_constraint(x, current_spec(axes))
