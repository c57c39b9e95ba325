"""Weighted sums of adapters, which are adapters themselves."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from research import methods, tree
from research.adapters.compatibility import (
    attached_shapes,
    check_finite,
    common_base,
    common_experiment,
)
from research.checkpoints import runs
from research.checkpoints.runs import Run
from research.tree import Arrays


def add(parts: Sequence[tuple[float, Run]], out: str | os.PathLike[str]) -> Path:
    """Writes the weighted sum of adapters of one method on one base; returns the step's folder.

    The sum is exact, not of the factors but of what they do: sum_i w_i (f_i(x) - f(x)).

    Raises:
      ValueError: other bases or methods, a method whose sums are none of its kind, or numbers that
        are not finite.
      FileExistsError: the folder holds a model.
    """
    runs.check_free(out)
    opened = [run for _, run in parts]
    base = common_base(opened)
    first, *others = (run.method for run in opened)
    if any(other.kind != first.kind for other in others):
        raise ValueError(f"a sum is of one method, not of {[run.method.kind for run in opened]}")
    for run in opened:
        runs.check_parameters(run)
    plain = methods.abstract(base.model, methods.Full(), methods.single_layers(base.model))
    method = first.weighted_sum(others, methods.smaller_sides(plain))
    wanted = tree.unstack_shapes(attached_shapes(methods.abstract(base.model, method)))
    arrays: Arrays = {}
    each = [(weight, _deltas(run)) for weight, run in parts]
    for place, delta in each[0][1].items():
        leaves = type(delta).weighted_sum([(weight, deltas[place]) for weight, deltas in each])
        arrays |= {f"{place}/site/{method.adapter}/{leaf}": a for leaf, a in leaves.items()}
    tree.check_names(wanted, arrays, "arrays of the sum")
    check_finite(arrays, "the sum")
    facts = {"sum": [[weight, str(run.path)] for weight, run in parts]}
    kept: dict[str, Any] = {
        "base": base,
        "experiment": common_experiment(opened),
        "extra_metadata": facts,
    }
    return runs.write(out, base, arrays, base.model, method=method, **kept)


def _deltas(run: Run) -> dict[str, Any]:
    """An adapter's deltas with their numbers, by place, in single layers."""
    method: Any = run.method
    shapes = methods.abstract(run.model, method, methods.single_layers(run.model))
    found, own = {}, run.read(*run.checkpoint.checksums("model/"))
    for name, module in methods.places(shapes, *methods.PLACES):
        delta = module.site.get(method.adapter)
        if delta is None:
            continue
        (place,) = tree.layer_names(name)
        leaves = {
            leaf: jnp.asarray(own[f"{place}/site/{method.adapter}/{leaf}"])
            for leaf in tree.flatten(delta)
        }
        found[place] = tree.unflatten(delta, leaves)
    return found
