"""What adapters must have in common to be put together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from research import tree
from research.checkpoints.runs import Run
from research.experiment import Experiment
from research.models.transformer import Transformer


def common_base(opened: Sequence[Run]) -> Run:
    """The base of all of them.

    Raises:
      ValueError: one is no adapter, or of another base.
    """
    for run in opened:
        if run.base is None:
            raise ValueError(f"{run.path} is a whole model, not an adapter of a base")
    first = opened[0].base
    for run in opened[1:]:
        assert run.base is not None and first is not None
        if run.base.fingerprint != first.fingerprint:
            raise ValueError(
                f"{run.path} was tuned on {run.base.path} with fingerprint "
                f"{run.base.fingerprint[:16]}, {opened[0].path} on {first.path} with "
                f"{first.fingerprint[:16]}: adapters of different bases do not go together"
            )
    assert first is not None
    return first


def common_experiment(opened: Sequence[Run]) -> Experiment | None:
    """The first run's experiment, if all of them write their examples in the same way; so what is
    made of them is asked as they were."""
    first = opened[0].experiment
    for run in opened:
        if run.experiment is None or first is None:
            return None
        ours, theirs = first.data, run.experiment.data
        if ours.objective != theirs.objective:
            return None
    return first


def check_finite(arrays: Mapping[str, Any], what: str) -> None:
    for name, array in arrays.items():
        if not np.isfinite(np.asarray(array)).all():
            raise ValueError(f"{name} of {what} is not finite everywhere; nothing is written")


def attached_shapes(model: Transformer) -> dict[str, Any]:
    """What methods attached to an abstract model."""
    return {name: s for name, s in tree.flatten(model).items() if tree.is_attached(name)}
