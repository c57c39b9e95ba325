"""What Google calls its TPUs, and how they are cut into machines.

Names of queued resources and of GKE's labels are those of docs.cloud.google.com, read in November
2026; TPU7x is offered through GKE alone.
"""

from __future__ import annotations

import dataclasses
import math

# chips of one machine of a slice that has several
CHIPS_OF_HOST = 4


@dataclasses.dataclass(frozen=True)
class Product:
    """One version of TPU."""

    # --accelerator-type without its number; empty where there are no TPU VMs of it
    type: str
    # what the number counts for each chip: chips, or the cores of older versions
    counted: int
    # --runtime-version
    runtime: str
    # cloud.google.com/gke-tpu-accelerator
    label: str
    # most chips of a single machine, which then is a slice of its own
    single: int = CHIPS_OF_HOST


PRODUCTS = {
    "v4": Product("v4", 2, "tpu-ubuntu2204-base", "tpu-v4-podslice"),
    "v5e": Product("v5litepod", 1, "v2-alpha-tpuv5-lite", "tpu-v5-lite-podslice", single=8),
    "v5p": Product("v5p", 2, "v2-alpha-tpuv5", "tpu-v5p-slice"),
    "v6e": Product("v6e", 1, "v2-alpha-tpuv6e", "tpu-v6e-slice", single=8),
    "tpu7x": Product("", 1, "", "tpu7x"),
}


@dataclasses.dataclass(frozen=True)
class Slice:
    """Chips of one slice."""

    product: Product
    shape: str
    chips: int

    @property
    def accelerator_type(self) -> str:
        """As queued resources ask for it."""
        return f"{self.product.type}-{self.product.counted * self.chips}"

    @property
    def hosts(self) -> int:
        """Machines."""
        return 1 if self.chips <= self.product.single else self.chips // CHIPS_OF_HOST

    @property
    def chips_of_host(self) -> int:
        return self.chips // self.hosts


def find(topology: str) -> Slice:
    """The slice that a topology such as v5e:4x4 names.

    Raises:
      ValueError: it names none.
    """
    version, _, shape = topology.partition(":")
    axes = shape.split("x")
    if version not in PRODUCTS or not all(axis.isdecimal() and int(axis) for axis in axes):
        raise ValueError(
            f"--topology {topology!r}: give a version ({', '.join(PRODUCTS)}) and its shape in "
            "chips, such as v5e:4x4"
        )
    chips = math.prod(map(int, axes))
    if chips > CHIPS_OF_HOST and chips % CHIPS_OF_HOST:
        raise ValueError(f"--topology {topology!r}: {chips} chips fill no machines of 4")
    return Slice(PRODUCTS[version], shape, chips)


def check_shared(workdir: str) -> None:
    """Refuses a folder that the machines of a run do not share.

    Raises:
      ValueError: it is not in a bucket.
    """
    if not workdir.startswith("gs://"):
        raise ValueError(
            f"--workdir {workdir}: the machines of a slice share no disk, and lose their own when "
            "they are preempted; give gs://BUCKET/FOLDER"
        )
