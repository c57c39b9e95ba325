"""What adapters must have in common to be put together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from research import tree
from research.checkpoints.runs import Run
from research.experiment import Experiment
from research.models.transformer import Transformer


def common_base(adapters: Sequence[Run]) -> Run:
    """The base of all adapters.

    Raises:
      ValueError: one is no adapter, of another base, or with another tokenizer.
    """
    for run in adapters:
        if run.base is None:
            raise ValueError(f"{run.path} is a whole model, not an adapter of a base")
    first = adapters[0].base
    for run in adapters[1:]:
        assert run.base is not None and first is not None
        if run.base.fingerprint != first.fingerprint:
            raise ValueError(
                f"{run.path} was tuned on {run.base.path} with fingerprint "
                f"{run.base.fingerprint[:16]}, {adapters[0].path} on {first.path} with "
                f"{first.fingerprint[:16]}: adapters of different bases do not go together"
            )
    assert first is not None
    for run in adapters:
        own, shared = run.tokenizer, first.tokenizer
        if own.fingerprint() != shared.fingerprint() or own.templates != shared.templates:
            raise ValueError(
                f"{run.path} came with a tokenizer or a chat template of its own, not that of its "
                f"base {first.path}: it is used alone, or merged"
            )
    return first


def common_experiment(adapters: Sequence[Run]) -> Experiment | None:
    """The first adapter's experiment, if all of them write their examples in the same way: what is
    made of them is prompted in that way too."""
    experiments = [run.experiment for run in adapters if run.experiment is not None]
    objectives = [experiment.data.objective for experiment in experiments]
    is_common = len(experiments) == len(adapters) and all(o == objectives[0] for o in objectives)
    return experiments[0] if is_common else None


def check_finite(arrays: Mapping[str, Any], what: str) -> None:
    """Refuses numbers that are not finite.

    Raises:
      ValueError: naming the first array that holds one.
    """
    for name, array in arrays.items():
        if not np.isfinite(np.asarray(array)).all():
            raise ValueError(f"{name} of {what} is not finite everywhere; nothing is written")


def attached_shapes(model: Transformer) -> dict[str, Any]:
    """The shapes of what methods attached to an abstract model, by name."""
    return {name: leaf for name, leaf in tree.flatten(model).items() if tree.is_attached(name)}
