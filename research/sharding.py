"""The mesh, and rules that say on which of its axes each logical axis of an array lies.

Axes of the mesh: `data` (replicas of the model, and all slices of a cluster), `fsdp` (batch rows
and weights both), `sequence` (the tokens of a row, and weights), `tensor` (heads, feed-forward and
vocabulary). Every parameter notes its logical axes where it is made; `rules` translate them, first
match wins, None replicates.
"""

from __future__ import annotations

import contextlib
import dataclasses
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
HOST = "pinned_host"  # JAX's name of the memory beside the devices that they can reach
# From what changes most seldom to what is said most often: neighbours share heads.
AXES = ("data", "fsdp", "sequence", "tensor")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How many devices of a slice lie along each axis; one of them may be -1, which takes the rest.

    Several slices are replicas of each other: they lie along `data`, whatever the config says. So
    the same config runs on one slice and on many.
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
        """How many of so many devices, of all slices, lie along each of `AXES`.

        Raises:
          ValueError: when the axes do not fit the number of devices of a slice.
        """
        sizes = [self.data, self.fsdp, self.sequence, self.tensor]
        asked = f"mesh data={self.data} fsdp={self.fsdp} tensor={self.tensor}"
        asked += f" sequence={self.sequence}" if self.sequence != 1 else ""
        if sizes.count(-1) > 1 or any(size == 0 or size < -1 for size in sizes):
            raise ValueError(f"{asked}: sizes are positive; at most one is -1 (all the rest)")
        known = math.prod(size for size in sizes if size != -1)
        if devices % (known * slices) or (-1 not in sizes and known * slices != devices):
            within = f" in {slices} slices (a mesh is that of one)" if slices > 1 else ""
            raise ValueError(f"{asked} does not fit {devices} devices{within}")
        data, *rest = (devices // slices // known if size == -1 else size for size in sizes)
        return (slices * data, *rest)

    def make(self, devices: Sequence[jax.Device] | None = None) -> Mesh:
        """The mesh over all devices.

        Raises:
          ValueError: when the axes do not fit them.
        """
        devices = jax.devices() if devices is None else list(devices)
        slices = slices_of(devices)
        sizes = self.sizes(len(devices), slices)
        automatic = (AxisType.Auto,) * len(AXES)  # XLA places what we do not
        try:
            if slices == 1 and devices[0].platform == "tpu":
                return jax.make_mesh(sizes, AXES, axis_types=automatic, devices=devices)
            if slices == 1:  # jax.make_mesh refuses GPUs of several hosts
                placed = mesh_utils.create_device_mesh(sizes, devices)
            else:
                inside, across = (sizes[0] // slices, *sizes[1:]), (slices, 1, 1, 1)
                placed = mesh_utils.create_hybrid_device_mesh(inside, across, devices)
            return Mesh(placed, AXES, axis_types=automatic)
        except NotImplementedError as error:
            size = "mesh " + " ".join(f"{a}={n}" for a, n in zip(AXES, sizes, strict=True) if n > 1)
            raise ValueError(
                f"{size} does not lie on these chips' torus: the size of an axis must be a product "
                f"of whole sides of it (of 4x4x4: 4, 16 or 64). {error}"
            ) from None

    def abstract(self, devices: int, slices: int = 1) -> AbstractMesh:
        """The mesh of so many devices, of which nothing else is known: for plans."""
        return AbstractMesh(self.sizes(devices, slices), AXES)


def slices_of(devices: Sequence[jax.Device]) -> int:
    """How many slices of TPUs these are. Hosts of GPUs, which JAX calls slices too, count as one:
    weights may be shared between them."""
    return len({getattr(d, "slice_index", 0) if d.platform == "tpu" else 0 for d in devices})


def spec(axes: tuple[str | None, ...], rules: Rules) -> PartitionSpec:
    """The mesh axes of an array with these logical axes."""
    known = {name for name, _ in rules}
    unknown = [axis for axis in axes if axis is not None and axis not in known]
    if unknown:
        raise ValueError(f"the sharding rules name no axis {unknown[0]!r}; they name {known}")
    return linen.logical_to_mesh_axes(axes, rules)


def shardings(
    axes: Mapping[str, tuple[str | None, ...]],
    shapes: Mapping[str, Any],
    mesh: AnyMesh,
    rules: Rules,
) -> dict[str, NamedSharding]:
    """The sharding of each named array.

    An axis of what a method attached that does not divide by its part of the mesh is replicated:
    it is small, and a rank need not fit the mesh.

    Raises:
      ValueError: when an axis of the base does not divide by its part of the mesh, naming both.
    """
    result = {}
    for name, logical in axes.items():
        placed = NamedSharding(mesh, spec(logical, rules))
        for number, (length, axis, parts) in enumerate(
            zip(shapes[name].shape, logical, placed.spec, strict=False)
        ):
            over = math.prod(mesh.shape[part] for part in _parts(parts))
            if length % over and tree.is_attached(name):
                whole = (*placed.spec[:number], None, *placed.spec[number + 1 :])
                placed = NamedSharding(mesh, PartitionSpec(*whole))
            elif length % over:
                raise ValueError(
                    f"{name}: axis {axis!r} of length {length} does not divide by {over} devices "
                    f"(mesh axis {parts!r}); change the mesh or the rule for {axis!r}"
                )
        result[name] = placed
    return result


def state_shardings(
    shapes: Mapping[str, Any], parameters: Mapping[str, NamedSharding], mesh: AnyMesh
) -> dict[str, NamedSharding]:
    """The sharding of every leaf of a train state.

    Args:
      shapes: abstract leaves by name, `model/NAME`, `optimizer/NAME/...`, `step`.
      parameters: the model's shardings by NAME.

    A leaf of the optimizer that has its parameter's shape lies where the parameter lies; factors
    and counts are small and replicated.
    """
    replicated = NamedSharding(mesh, PartitionSpec())
    result = {name: replicated for name in shapes}
    result |= {f"model/{name}": placed for name, placed in parameters.items()}
    for name, shape in shapes.items():
        owner = name.removeprefix("optimizer/")
        while owner and owner not in parameters:
            owner = owner.rpartition("/")[0]
        if name.startswith("optimizer/") and owner:
            if shape.shape == shapes[f"model/{owner}"].shape:
                result[name] = parameters[owner]
    return result


def on_host(
    patterns: Sequence[str], leaves: Mapping[str, Any], placed: Mapping[str, NamedSharding]
) -> dict[str, NamedSharding]:
    """The shardings, in the host's memory, of the optimizer's arrays that the patterns name.

    Raises:
      ValueError: a pattern that names none of them.
    """
    arrays = [name for name, leaf in leaves.items() if name.startswith("optimizer/") and leaf.ndim]
    tree.check_patterns(patterns, arrays, "offload")
    rules = tuple((pattern, True) for pattern in patterns)
    named = [name for name in arrays if tree.match(rules, name, False)]
    return {name: placed[name].with_memory_kind(HOST) for name in named}


def to_device(arrays: Any, placed: Any) -> Any:
    """Under jit: arrays that lie in the host's memory, brought to the devices."""
    there = jax.memory.Space.Device
    bring = lambda x, at: jax.device_put(x, there) if at.memory_kind == HOST else x  # noqa: E731
    return jax.tree.map(bring, arrays, placed)


def layer_shardings(names: list[str], stacked: NamedSharding) -> dict[str, NamedSharding]:
    """The shardings of the single layers of a stacked leaf."""
    return {name: NamedSharding(stacked.mesh, PartitionSpec(*stacked.spec[1:])) for name in names}


def shard_any_axis(shapes: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes with shardings over all devices: each array cut along its first axis that they
    divide. For arrays that are only read and written."""
    devices = np.asarray(jax.devices())
    mesh = Mesh(devices, ("all",))

    def place(shape: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        cut = next((i for i, n in enumerate(shape.shape) if n % devices.size == 0), None)
        parts = [None] * cut + ["all"] if cut is not None else []
        where = NamedSharding(mesh, PartitionSpec(*parts))
        return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=where)

    return {name: place(shape) for name, shape in shapes.items()}


def _parts(parts: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return () if parts is None else (parts,) if isinstance(parts, str) else tuple(parts)


def batch_sharding(mesh: AnyMesh, rules: Rules) -> NamedSharding:
    """Rows over the batch's mesh axes, everything else whole."""
    return NamedSharding(mesh, spec(("batch",), rules))


def batch_parts(mesh: AnyMesh, rules: Rules) -> int:
    """In how many parts the batch is cut."""
    parts = _parts(batch_sharding(mesh, rules).spec[0])
    return math.prod(mesh.shape[part] for part in parts)


def local_rows(placed: NamedSharding, rows: int) -> np.ndarray:
    """Which of so many rows the devices of this process hold, ascending."""
    held = placed.addressable_devices_indices_map((rows,)).values()
    return np.unique(np.concatenate([np.arange(rows)[index] for index in held]))


def place_rows(batch: Any, placed: NamedSharding, here: np.ndarray, rows: int) -> Any:
    """Global arrays [rows,...] of leaves that hold the rows `here` of them, see `local_rows`."""

    def place(leaf: np.ndarray) -> jax.Array:
        def part(index: Any) -> np.ndarray:
            first, last, _ = index[0].indices(rows)
            start = int(np.searchsorted(here, first))  # the rows of a device follow each other
            return leaf[start : start + last - first]

        return jax.make_array_from_callback((rows, *leaf.shape[1:]), placed, part)

    return jax.tree.map(place, batch)


@contextlib.contextmanager
def mesh_context(mesh: Mesh, rules: Rules) -> Iterator[None]:
    """Makes the mesh and the rules those that `constrain` follows while tracing."""
    with jax.set_mesh(mesh), linen.logical_axis_rules(rules):
        yield


def platform() -> str:
    """What is compiled for, in JAX's name: that of the mesh in use, else this machine's."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def spec_in_use(axes: tuple[str | None, ...]) -> PartitionSpec:
    """`spec` by the rules that `mesh_context` has set."""
    return spec(axes, linen.get_logical_axis_rules())


def axes_of(logical: str) -> tuple[str, ...]:
    """The mesh axes of more than one device that a logical axis lies on; none outside
    `mesh_context`."""
    mesh, rules = jax.sharding.get_abstract_mesh(), linen.get_logical_axis_rules()
    if mesh.empty or not rules:
        return ()
    return tuple(axis for axis in _parts(spec((logical,), rules)[0]) if mesh.shape[axis] > 1)


def parts_of(logical: str) -> int:
    """In how many parts a logical axis is cut."""
    return math.prod(jax.sharding.get_abstract_mesh().shape[axis] for axis in axes_of(logical))


def constrain(x: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
    """Pins an activation's sharding; does nothing outside `mesh_context`."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    if not linen.get_logical_axis_rules():
        return x
    return jax.lax.with_sharding_constraint(x, spec_in_use(axes))
