"""Records of what a run needs on a topology, and their JSON."""

from __future__ import annotations

import dataclasses
from typing import Any

from research.runtime.memory import GIB


@dataclasses.dataclass(frozen=True)
class Workload:
    """A run and its chips; nothing that depends on where the arrays lie."""

    chips: int
    devices_per_chip: int
    # memory of one device that a program may use
    limit_gib: float
    method: str
    parameters: int
    trainable_parameters: int
    batch_size: int
    sequence_length: int
    accumulation_steps: int
    remat: str
    steps: int
    # of a step, without what is computed twice
    model_flops: float


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The needs and limits of a sharded step in closed form; GiB are those of one device."""

    # sizes of the mesh's axes
    mesh: dict[str, int]
    rows_per_device: int
    # between two steps: weights of the base, what is attached, the optimizer's state
    weights_gib: float
    adapters_gib: float
    optimizer_gib: float
    # what the host keeps for one device
    host_gib: float
    hardware_flops: float
    memory_bytes: float
    # by reason, as in `roofline.Traffic`
    sent_bytes: dict[str, float]
    # each limit's time alone
    seconds: dict[str, float]
    bound_by: str
    step_seconds: float
    tokens_per_second: float
    utilisation: float
    # of the whole run
    hours: float
    chip_hours: float
    money: float | None
    currency: str | None
    # when the prices were so, and under which conditions
    prices_of: str | None
    prices_are: str | None


@dataclasses.dataclass(frozen=True)
class MemoryFit:
    """Whether a step fits a device's memory, by its compiler; GiB, None where that is not known."""

    fits: bool
    argument_gib: float | None = None
    temp_gib: float | None = None
    output_gib: float | None = None
    peak_gib: float | None = None
    live_gib: float | None = None
    # why it was not compiled
    why: str | None = None

    @classmethod
    def refused(
        cls, why: str, argument_bytes: int | None = None, peak_bytes: int | None = None
    ) -> MemoryFit:
        """A step that does not compile, with what is known of its size."""
        arguments = None if argument_bytes is None else argument_bytes / GIB
        peak = None if peak_bytes is None else peak_bytes / GIB
        temporaries = None
        if argument_bytes is not None and peak_bytes is not None:
            temporaries = max(peak_bytes - argument_bytes, 0) / GIB
        return cls(False, arguments, temporaries, peak_gib=peak, why=why)

    def to_json(self) -> dict[str, Any]:
        result = dataclasses.asdict(self)
        if self.why is None:
            del result["why"]
        else:
            del result["output_gib"], result["live_gib"]
        return result


@dataclasses.dataclass(frozen=True)
class Alternative:
    """A config like the one that does not fit, which does."""

    # overrides on top of the given ones
    changes: list[str]
    report: Report


@dataclasses.dataclass(frozen=True)
class Report:
    """The needs of a run on a topology, and its limits."""

    topology: str
    slices: int
    memory: MemoryFit
    # None: there is no such run
    workload: Workload | None = None
    # None: the devices cannot share the batch
    estimate: Estimate | None = None
    # the compiler's flags and the seconds it took; None: it was not asked
    flags: list[str] | None = None
    compile_seconds: float | None = None
    # None: not looked for
    alternatives: list[Alternative] | None = None

    @property
    def fits(self) -> bool:
        return self.memory.fits

    def to_json(self) -> dict[str, Any]:
        """All numbers by name; what there is none of is left out."""
        result: dict[str, Any] = {"topology": self.topology, "slices": self.slices}
        result |= dataclasses.asdict(self.workload) if self.workload else {"model_flops": None}
        result |= dataclasses.asdict(self.estimate) if self.estimate else {}
        result |= self.memory.to_json()
        if self.flags is not None:
            result |= {"flags": self.flags, "compile_seconds": self.compile_seconds}
        if self.alternatives is not None:
            result["alternatives"] = [
                {"changes": each.changes} | each.report.to_json() for each in self.alternatives
            ]
        return result
