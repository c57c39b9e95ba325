"""Peak FLOP/s, bandwidth and memory of each accelerator, as its maker publishes them.

A device is what JAX calls one: a chip, but half of one on TPU7x. Figures of Cloud TPU are those of
docs.cloud.google.com/tpu/docs (one page a version, system architecture), read in November 2026. It
gives both directions of the links together; for v4 only the all-reduce rate of a pod of 4,096 chips
(1.1 PB/s), and no network rate: that is taken to be v5p's.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from research.runtime.memory import GIB


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """One device of a TPU."""

    # JAX's name for its kind, as a pattern
    kind: str
    # dense bfloat16 FLOP/s
    flops: float
    # bytes/s between memory and chip
    memory_bandwidth: float
    # bytes/s that it sends over all of its links inside a slice, one way
    link_bandwidth: float
    # bytes/s of its share of its host's network, between slices
    network_bandwidth: float
    # bytes that a program may use of its memory: what the TPU compiler allows
    memory: int
    # chips of the largest slice
    max_chips: int
    # rows and columns of its systolic arrays: a product with a shorter side leaves some idle
    systolic_size: int = 128
    # axes of the torus that links the chips of a slice
    torus_axes: int = 3
    # devices that are sold as one chip
    devices_per_chip: int = 1
    # extra arguments for a topology of it
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


# by the name that Cloud TPU gives a version
TPUS = {
    "v4": Accelerator(
        kind="TPU v4$",
        flops=275e12,
        memory_bandwidth=1200e9,
        link_bandwidth=268e9,
        network_bandwidth=6.25e9,
        memory=int(30.75 * GIB),
        max_chips=4096,
        options={"chip_config_name": "megacore"},
    ),
    "v5e": Accelerator(
        kind="TPU v5 lite|TPU v5e",
        flops=197e12,
        memory_bandwidth=819e9,
        link_bandwidth=200e9,
        network_bandwidth=3.125e9,
        memory=int(15.75 * GIB),
        torus_axes=2,
        max_chips=256,
    ),
    "v5p": Accelerator(
        kind="TPU v5p?$",
        flops=459e12,
        memory_bandwidth=2765e9,
        link_bandwidth=600e9,
        network_bandwidth=6.25e9,
        memory=int(95.74 * GIB),
        max_chips=6144,
    ),
    "v6e": Accelerator(
        kind="TPU v6 lite|TPU v6e",
        flops=918e12,
        memory_bandwidth=1638e9,
        link_bandwidth=400e9,
        network_bandwidth=12.5e9,
        memory=int(31.25 * GIB),
        torus_axes=2,
        max_chips=256,
        systolic_size=256,
    ),
    "tpu7x": Accelerator(
        kind="TPU7x",
        flops=2307e12 / 2,
        memory_bandwidth=7380e9 / 2,
        link_bandwidth=600e9 / 2,
        network_bandwidth=12.5e9 / 2,
        memory=int(94.75 * GIB),
        max_chips=9216,
        systolic_size=256,
        devices_per_chip=2,
    ),
}
# dense bfloat16 FLOP/s of GPUs, by JAX's name for their kind, as a pattern; the first that is found
GPUS = (("H100 PCIe", 756e12), ("H100 NVL", 835e12), ("H100|H200", 989e12), ("A100", 312e12))
# What `graft preflight --topology all` compiles for: 64 chips of each, or the nearest there is.
EXAMPLE_TOPOLOGIES = ("v4:4x4x4", "v5e:8x8", "v5p:4x4x4", "v6e:8x8", "tpu7x:4x4x4")


def peak_flops(device_kind: str) -> float | None:
    """Dense bfloat16 FLOP/s of one device, by JAX's name for its kind; None if unknown here."""
    every = (*((one.kind, one.flops) for one in TPUS.values()), *GPUS)
    return next((flops for kind, flops in every if re.search(kind, device_kind)), None)


@dataclasses.dataclass(frozen=True)
class Topology:
    """Chips to compile for, which need not be there."""

    name: str  # such as v5e:16x16
    slices: int
    accelerator: Accelerator
    devices: Sequence[jax.Device]  # empty where nothing can be compiled for them
    planned_devices: int = 0  # in place of them

    @property
    def device_count(self) -> int:
        return len(self.devices) or self.planned_devices

    @property
    def chips(self) -> int:
        return self.device_count // self.accelerator.devices_per_chip

    def rows(self, per_chip: int) -> int:
        """Rows of a batch with so many for each chip, in whole rows for each device."""
        return self.device_count * -(-per_chip // self.accelerator.devices_per_chip)


def plan_topology(name: str) -> Topology:
    """One slice of which only the size is known: for closed forms, without the compiler.

    Raises:
      ValueError: as `get_topology`.
    """
    accelerator, chips = _parse_topology(name)
    return Topology(name, 1, accelerator, (), chips * accelerator.devices_per_chip)


def get_topology(name: str, slices: int = 1) -> Topology:
    """The devices of one or several slices, from the TPU compiler's own knowledge of them.

    Raises:
      ValueError: an unknown version, or a shape that it does not come in.
      ModuleNotFoundError: libtpu is not installed.
    """
    accelerator, chips = _parse_topology(name)
    from jax.experimental import topologies

    options = dict(accelerator.options) | ({"num_slices": slices} if slices > 1 else {})
    if chips == 1:
        options["chips_per_host_bounds"] = (1, 1, 1)
    try:
        description = topologies.get_topology_desc(platform="tpu", topology_name=name, **options)
    except RuntimeError as error:
        if "TPU support not installed" in str(error):
            raise ModuleNotFoundError(
                "the TPU compiler is not there: run tools/setup preflight"
            ) from None
        raise ValueError(f"topology {name!r}: {str(error).splitlines()[0]}") from None
    devices = description.devices
    topology = Topology(name, slices, accelerator, devices)
    expected = slices * chips
    if topology.chips != expected:
        raise ValueError(
            f"topology {name!r}: {topology.chips} chips where {expected} were asked for"
        )
    return topology


def _parse_topology(name: str) -> tuple[Accelerator, int]:
    """The chips that a name stands for, and their number."""
    version, _, shape = name.partition(":")
    axes = [int(axis) for axis in shape.split("x") if axis.isdecimal()]
    whole = "x".join(map(str, axes)) == shape and all(axes)
    if version not in TPUS or len(axes) != TPUS[version].torus_axes or not whole:
        examples = ", ".join(EXAMPLE_TOPOLOGIES)
        raise ValueError(
            f"topology {name!r}: give a version ({', '.join(TPUS)}) and its shape in chips, such "
            f"as {examples}"
        )
    if math.prod(axes) > TPUS[version].max_chips:
        raise ValueError(
            f"topology {name!r}: {version} has {TPUS[version].max_chips} chips at most"
        )
    return TPUS[version], math.prod(axes)


def peak_flops_per_second(devices: Sequence[jax.Device] | None = None) -> float | None:
    """Peak FLOP/s of `devices` (default: all, of every process) together.

    Accelerators: dense bfloat16, as `peak_flops` says; None for a kind unknown there.
    CPU: the fastest float32 product measured here, once (0.3 s), for every process; a process's
    virtual devices share one machine.
    """
    devices = jax.devices() if devices is None else devices
    if devices[0].platform == "cpu":
        return _measured_cpu_flops() * len({device.process_index for device in devices})
    peak = peak_flops(devices[0].device_kind)
    return None if peak is None else peak * len(devices)


@functools.cache
def _measured_cpu_flops(size: int = 2048, seconds: float = 0.25) -> float:
    cpu = jax.local_devices(backend="cpu")[0]
    matrix = jax.device_put(jnp.ones((size, size), jnp.float32), cpu)
    product = jax.jit(jnp.matmul)
    product(matrix, matrix).block_until_ready()
    fastest = math.inf
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        start = time.perf_counter()
        product(matrix, matrix).block_until_ready()
        fastest = min(fastest, time.perf_counter() - start)
    return 2 * size**3 / fastest
