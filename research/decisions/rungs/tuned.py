"""Tuning, cheapest first: what each trains, and the learning rates that its search begins with."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Tuning:
    """A way to tune."""

    name: str
    method: Mapping[str, Any]
    # learning rates, in order; the search goes on beyond an edge
    rates: tuple[float, ...]


TUNINGS = (
    Tuning("prompt tuning", dict(kind="prompt", length=20, start="vocabulary"), (1e-2, 3e-2, 1e-1)),
    Tuning("LoRA", dict(kind="lora", rank=16, alpha=32.0), (3e-4, 1e-3, 3e-3)),
    Tuning("adapter", dict(kind="bottleneck", width=32), (3e-4, 1e-3, 3e-3)),
    Tuning("full", dict(kind="full"), (1e-4, 3e-4, 1e-3)),
)
