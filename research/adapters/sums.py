"""Weighted sums of adapters, which are adapters themselves."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

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
from research.methods import Delta
from research.tree import Arrays


def add(parts: Sequence[tuple[float, Run]], out: str | os.PathLike[str]) -> Path:
    """Writes the weighted sum of adapters of one method on one base; returns the step's folder.

    The sum is exact: not of the factors, but of what they add to the base, sum_i w_i (f_i(x) -
    f(x)).

    Raises:
      ValueError: other bases or methods, a method whose sums are none of its kind, or numbers that
        are not finite.
      FileExistsError: the folder holds a model.
    """
    runs.check_free(out)
    adapters = [run for _, run in parts]
    base = common_base(adapters)
    first, *others = (run.method for run in adapters)
    if any(other.kind != first.kind for other in others):
        raise ValueError(f"a sum is of one method, not of {[run.method.kind for run in adapters]}")
    for run in adapters:
        runs.check_parameters(run)
    plain = methods.abstract(base.model, methods.Full(), methods.single_layers(base.model))
    method = first.weighted_sum(others, methods.smaller_sides(plain))
    shapes = tree.unstack_shapes(attached_shapes(methods.abstract(base.model, method)))
    arrays: Arrays = {}
    weighted_deltas = [(weight, _deltas(run)) for weight, run in parts]
    for place, delta in weighted_deltas[0][1].items():
        at_place = [(weight, deltas[place]) for weight, deltas in weighted_deltas]
        leaves = type(delta).weighted_sum(at_place)
        arrays |= {f"{place}/site/{method.adapter}/{leaf}": a for leaf, a in leaves.items()}
    tree.check_names(shapes, arrays, "arrays of the sum")
    check_finite(arrays, "the sum")
    facts = {"sum": [[weight, str(run.path)] for weight, run in parts]}
    experiment = common_experiment(adapters)
    return runs.write(
        out,
        base,
        arrays,
        base.model,
        method=method,
        base=base,
        experiment=experiment,
        extra_metadata=facts,
    )


def _deltas(run: Run) -> dict[str, Delta]:
    """An adapter's deltas with their arrays, by place, in single layers."""
    method = run.method
    shapes = methods.abstract(run.model, method, methods.single_layers(run.model))
    deltas, arrays = {}, run.read(*run.checkpoint.checksums("model/"))
    for name, module in methods.places(shapes, *methods.PLACES):
        delta = module.site.get(method.adapter)
        if delta is None:
            continue
        (place,) = tree.layer_names(name)
        leaves = {
            leaf: jnp.asarray(arrays[f"{place}/site/{method.adapter}/{leaf}"])
            for leaf in tree.flatten(delta)
        }
        deltas[place] = tree.unflatten(delta, leaves)
    return deltas
