"""Adapters of one form side by side; `Batch.adapter` says which one each row uses."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from research import methods, sharding, tree
from research.adapters.compatibility import (
    attached_shapes,
    check_finite,
    common_base,
    common_experiment,
)
from research.checkpoints import runs, stacking
from research.checkpoints.runs import Run
from research.config import schema
from research.methods import Method
from research.models.transformer import Transformer
from research.tree import Arrays

NO_ADAPTER = -1  # a row of `Batch.adapter` that uses none


def write(named: Mapping[str, Run], out: str | os.PathLike[str]) -> Path:
    """Writes adapters of one form on one base side by side, as a run of method `bank`; returns the
    step's folder. Their ranks may differ: a smaller one is filled up with zeros.

    Raises:
      ValueError: other bases, methods or shapes, or numbers that are not finite.
      FileExistsError: the folder holds a model.
    """
    runs.check_free(out)
    base, method, arrays = gather(named)
    told = common_experiment(list(named.values()))
    return runs.write(out, base, arrays, base.model, method=method, base=base, experiment=told)


def _bank_method(named: Mapping[str, Run]) -> Any:
    """The method that holds these runs' adapters.

    Raises:
      ValueError: one of them is no adapter that a bank can hold, or of another method.
    """
    base = common_base(list(named.values()))
    forms, shapes = {}, {}
    for name, run in named.items():
        method: Any = run.method
        if not method.adapter or method.bank_names:
            raise ValueError(f"{name} is {method.kind}: a bank holds adapters, one of each name")
        alone = dataclasses.replace(method, adapter="one")
        made = methods.abstract(base.model, alone, methods.single_layers(base.model))
        forms[name] = method.kind, jax.tree.structure(made)
        shapes[name] = {leaf: shape.shape for leaf, shape in attached_shapes(made).items()}
    first, *others = named
    for name in others:
        if forms[name] != forms[first]:
            said = " and ".join(
                f"{n} is {_said(named[n], named[m])}" for n, m in ((name, first), (first, name))
            )
            raise ValueError(f"{said}: the adapters of a bank do the same, with other numbers")
    # the form of the bank is that of the one that has the largest ranks
    most = {
        leaf: tuple(map(max, *(shapes[name][leaf] for name in named))) if others else shape
        for leaf, shape in shapes[first].items()
    }
    largest = next((name for name in named if shapes[name] == most), None)
    if largest is None:
        raise ValueError(
            f"none of {', '.join(named)} has the largest rank everywhere, so no form holds all: "
            "ranks by pattern must grow together"
        )
    make: Any = methods.METHODS["bank"]
    return make(of=named[largest].method, names=tuple(named))


def gather(named: Mapping[str, Run]) -> tuple[Run, Any, Arrays]:
    """The base of these runs, the method that holds them side by side, and their arrays [A,...].

    Raises:
      ValueError: other bases, or arrays of other names or shapes.
    """
    for run in named.values():
        runs.check_parameters(run)
    base, method = common_base(list(named.values())), _bank_method(named)
    adapter = method.of.adapter
    axes = _axes(base, method.of)
    columns: dict[str, list[Any]] = {}
    for name, run in named.items():
        mine = run.method.adapter
        own = {
            n: array
            for n, array in run.read(*run.checkpoint.checksums("model/")).items()
            if tree.is_attached(n)
        }
        renamed = {_in_bank(n, mine, adapter): n for n in own}
        if columns:
            tree.check_names(columns, renamed, f"the adapters {name} and {next(iter(named))}")
        for new, old in renamed.items():
            columns.setdefault(new, []).append(own[old])
    stacked = {}
    for new, arrays in columns.items():
        shapes = {name: array.shape for name, array in zip(named, arrays, strict=True)}
        most = tuple(map(max, zip(*shapes.values(), strict=True)))
        for shape in shapes.values():
            if any(n < m and axis != "rank" for n, m, axis in zip(shape, most, axes[new])):  # noqa: B905
                raise ValueError(f"the adapters of a bank have one shape; {new}: {shapes}")
        stacked[new] = jnp.stack([_filled_up(array, most) for array in arrays])
    check_finite(stacked, "the bank")
    return base, method, stacked


def load_bank(
    named: Mapping[str, Run], mesh: jax.sharding.Mesh, rules: sharding.Rules
) -> Transformer:
    """The base of these runs with all of their adapters; `Batch.adapter` counts them in order.

    Raises:
      ValueError: as `gather`.
    """
    base, method, arrays = gather(named)

    def read(abstract: Mapping[str, jax.ShapeDtypeStruct]) -> Arrays:
        mine = {
            n: jax.device_put(arrays[n], s.sharding) for n, s in abstract.items() if n in arrays
        }
        return mine | base.restore({n: s for n, s in abstract.items() if n not in arrays})

    return stacking.restore_model(methods.abstract(base.model, method), read, mesh, rules)


def adapter_number(method: Method, name: str | None) -> int:
    """What `Batch.adapter` says for an adapter of a bank; None stands for the base.

    Raises:
      ValueError: there is none of that name.
    """
    if name is None:
        return NO_ADAPTER
    known = method.bank_names
    if name not in known:
        near = tree.nearest(name, known, 1)
        raise ValueError(f"there is no adapter {name!r} in the bank; nearest: {near}")
    return known.index(name)


def _in_bank(name: str, mine: str, adapter: str) -> str:
    """A parameter's name in an adapter of its own -> that in a bank."""
    name = name.replace(f"/site/{mine}/", f"/site/{adapter}/each/")
    return name.replace(f"methods/{mine}/", f"methods/{adapter}/")


def _axes(base: Run, method: Any) -> dict[str, tuple[str | None, ...]]:
    """The logical axes of what a method attaches, by single-layer name in a bank."""
    shapes = methods.abstract(base.model, method, methods.single_layers(base.model))
    found = {}
    for name, axes in tree.parameter_axes(shapes).items():
        if tree.is_attached(name):
            (single,) = tree.layer_names(name)
            inner = axes[1:] if tree.is_stacked(name) else axes
            found[_in_bank(single, method.adapter, method.adapter)] = inner
    return found


def _filled_up(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """An array with zeros behind it, up to a shape."""
    whole = np.zeros(shape, array.dtype)
    whole[tuple(map(slice, array.shape))] = array
    return whole


def _said(run: Run, other: Run) -> str:
    """A method, with what of it is not as in another of its kind, for an error."""
    given, theirs = schema.to_dict(run.method), schema.to_dict(other.method)
    apart = [f"{n} {v}" for n, v in given.items() if v != theirs.get(n) and n != "kind"]
    kind = given["kind"]
    return f"{kind} with {', '.join(apart)}" if apart and kind == theirs["kind"] else kind
