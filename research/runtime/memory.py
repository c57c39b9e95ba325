"""Memory: what a compiled step needs of each device, what is free, and what a process used."""

from __future__ import annotations

import ctypes
import dataclasses
import gc
import re
import resource
import sys
from pathlib import Path
from typing import Any

import jax

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class StepMemory:
    """Bytes of one device that a compiled step needs."""

    # state, batch and numbers: what lies there between two steps
    arguments: int
    # what exists during the step only
    temporaries: int
    # outputs that do not take the place of an argument
    outputs: int
    # the most that is in use at one time, where the compiler says it: less, as buffers leave gaps
    live: int = 0

    @classmethod
    def of(cls, compiled: Any) -> StepMemory:
        """From XLA's own plan of buffers, which is exact."""
        plan = compiled.memory_analysis()
        return cls(
            plan.argument_size_in_bytes,
            plan.temp_size_in_bytes,
            plan.output_size_in_bytes - plan.alias_size_in_bytes,
            getattr(plan, "peak_memory_in_bytes", 0),
        )

    @property
    def peak(self) -> int:
        return self.arguments + self.temporaries + self.outputs

    def check(self, limit: int | None) -> str:
        """Describes it in a line.

        Raises:
          ValueError: when it is more than `limit`.
        """
        text = (
            f"{self.peak / GIB:.2f} GiB a device: {self.arguments / GIB:.2f} arguments, "
            f"{self.temporaries / GIB:.2f} temporaries"
        )
        if limit is None:
            return text
        if self.peak > limit:
            raise ValueError(
                f"the step needs {text}, and {limit / GIB:.2f} GiB are free. To lower "
                "temporaries: compute.remat=full (on CPU with compute.max_scan_layers=0), a larger "
                "accumulation_steps, a smaller data.batch_size or loss.chunk; to lower arguments: "
                "a larger mesh.fsdp, another method"
            )
        return f"{text}; {limit / GIB:.2f} are free"


def free_bytes() -> int | None:
    """What one local device can still take; None where that cannot be known.

    The devices of a CPU share the machine's memory.
    """
    free = []
    for device in jax.local_devices():
        stats = device.memory_stats() or {}
        if "bytes_limit" in stats:
            free.append(stats["bytes_limit"] - stats.get("bytes_in_use", 0))
    if free:
        return min(free)
    if jax.default_backend() != "cpu":
        return None
    available = available_on_host()
    return None if available is None else available // jax.local_device_count()


def available_on_host() -> int | None:
    """Bytes that programs of this machine, or of this container, can still take."""
    information = Path("/proc/meminfo")
    if not information.exists():
        return None
    match = re.search(r"MemAvailable:\s*(\d+) kB", information.read_text(encoding="utf-8"))
    limits = [int(match[1]) * 1024] if match else []
    group = Path("/sys/fs/cgroup")  # a container's own limit
    most, now = group / "memory.max", group / "memory.current"
    if most.exists() and now.exists() and (text := most.read_text().strip()) != "max":
        limits.append(int(text) - int(now.read_text()) + _reclaimable(group / "memory.stat"))
    return min(limits, default=None)


def _reclaimable(statistics: Path) -> int:
    """Bytes that a container holds as cached files and gives back when asked."""
    text = statistics.read_text(encoding="utf-8") if statistics.exists() else ""
    match = re.search(r"^inactive_file (\d+)$", text, re.MULTILINE)
    return int(match[1]) if match else 0


def release_memory(compiled: bool = False) -> None:
    """Frees what nothing refers to, for the machine too: glibc keeps what lies scattered.

    Args:
      compiled: JAX's caches of traced and compiled programs go too, whoever made them.
    """
    if compiled:
        jax.clear_caches()
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def peak_memory_bytes() -> int:
    """The most memory used so far by this process: of its fullest device where devices have
    memory of their own, else the process's resident set.

    Both only grow: of two runs in one process, the second one's peak includes the first's.
    """
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [s["peak_bytes_in_use"] for s in stats if "peak_bytes_in_use" in s]
    if peaks:
        return max(peaks)
    # Linux keeps getrusage's figure over exec, so that a child starts with its parent's.
    status = Path("/proc/self/status")
    match = re.search(r"VmHWM:\s*(\d+) kB", status.read_text()) if status.exists() else None
    if match:
        return int(match[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
