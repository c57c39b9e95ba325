"""How far numbers that a model says lie from the right ones."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Errors:
    """What is between N numbers and the right ones, in their own unit."""

    mean_squared: float
    mean_absolute: float
    # Pearson's coefficient; None where either side is constant
    correlation: float | None


def measure_errors(numbers: np.ndarray) -> Errors:
    """Errors of numbers [N,2], each beside the right one."""
    difference = numbers[:, 0] - numbers[:, 1]
    is_constant = not (np.ptp(numbers, axis=0) > 0).all()
    return Errors(
        mean_squared=float(np.mean(difference**2)),
        mean_absolute=float(np.mean(np.abs(difference))),
        correlation=None if is_constant else float(np.corrcoef(numbers.T)[0, 1]),
    )
