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
from research.batch import NO_ADAPTER
from research.checkpoints import runs, stacking
from research.checkpoints.runs import Run
from research.config import schema
from research.methods import Bank, Method
from research.models.transformer import Transformer
from research.tree import Arrays


def write(adapters: Mapping[str, Run], out: str | os.PathLike[str]) -> Path:
    """Writes adapters of one form on one base side by side, as a run of method `bank`; returns the
    step's folder. Their ranks may differ: a smaller one is filled up with zeros.

    Raises:
      ValueError: other bases, methods or shapes, or numbers that are not finite.
      FileExistsError: the folder holds a model.
    """
    runs.check_free(out)
    base, method, arrays = gather(adapters)
    experiment = common_experiment(list(adapters.values()))
    return runs.write(
        out, base, arrays, base.model, method=method, base=base, experiment=experiment
    )


def _bank_method(adapters: Mapping[str, Run]) -> Bank:
    """The method that holds these adapters.

    Raises:
      ValueError: one of them is no adapter that a bank can hold, or of another method.
    """
    base = common_base(list(adapters.values()))
    forms, shapes = {}, {}
    for name, run in adapters.items():
        method: Any = run.method  # a dataclass with a field `adapter`
        if not method.adapter or method.bank_names:
            raise ValueError(f"{name} is {method.kind}: a bank holds adapters, one of each name")
        renamed_method = dataclasses.replace(method, adapter="one")
        model = methods.abstract(base.model, renamed_method, methods.single_layers(base.model))
        forms[name] = method.kind, jax.tree.structure(model)
        shapes[name] = {leaf: shape.shape for leaf, shape in attached_shapes(model).items()}
    first, *others = adapters
    for name in others:
        if forms[name] != forms[first]:
            pairs = (name, first), (first, name)
            methods_text = " and ".join(
                f"{n} is {_describe_difference(adapters[n].method, adapters[m].method)}"
                for n, m in pairs
            )
            raise ValueError(
                f"{methods_text}: the adapters of a bank do the same, with other numbers"
            )
    # the form of the bank is that of the one that has the largest ranks
    bank_shapes = {
        leaf: tuple(map(max, *(shapes[name][leaf] for name in adapters))) if others else shape
        for leaf, shape in shapes[first].items()
    }
    largest = next((name for name in adapters if shapes[name] == bank_shapes), None)
    if largest is None:
        raise ValueError(
            f"none of {', '.join(adapters)} has the largest rank everywhere, so no form holds all: "
            "ranks by pattern must grow together"
        )
    return Bank(of=adapters[largest].method, names=tuple(adapters))


def gather(adapters: Mapping[str, Run]) -> tuple[Run, Bank, Arrays]:
    """The base of these adapters, the method that holds them side by side, and arrays [A,...].

    Raises:
      ValueError: other bases, or arrays of other names or shapes.
    """
    for run in adapters.values():
        runs.check_parameters(run)
    base, method = common_base(list(adapters.values())), _bank_method(adapters)
    axes = _axes(base, method.of)
    arrays_by_name: dict[str, list[Any]] = {}
    for name, run in adapters.items():
        arrays = run.read(*run.checkpoint.checksums("model/"))
        bank_arrays = {
            _bank_parameter(n, run.method.adapter, method.adapter): array
            for n, array in arrays.items()
            if tree.is_attached(n)
        }
        if arrays_by_name:
            what = f"the adapters {name} and {next(iter(adapters))}"
            tree.check_names(arrays_by_name, bank_arrays, what)
        for parameter, array in bank_arrays.items():
            arrays_by_name.setdefault(parameter, []).append(array)
    stacks = {}
    for parameter, each in arrays_by_name.items():
        shapes = {name: array.shape for name, array in zip(adapters, each, strict=True)}
        largest = tuple(map(max, zip(*shapes.values(), strict=True)))
        for shape in shapes.values():
            sides = zip(shape, largest, axes[parameter], strict=True)
            if any(length < most and axis != "rank" for length, most, axis in sides):
                raise ValueError(f"the adapters of a bank have one shape; {parameter}: {shapes}")
        stacks[parameter] = jnp.stack([_pad(array, largest) for array in each])
    check_finite(stacks, "the bank")
    return base, method, stacks


def load_bank(
    adapters: Mapping[str, Run], mesh: jax.sharding.Mesh, rules: sharding.Rules
) -> Transformer:
    """The base of these adapters with all of them attached; `Batch.adapter` counts them in order.

    Raises:
      ValueError: as `gather`.
    """
    base, method, arrays = gather(adapters)

    def read(abstract: Mapping[str, jax.ShapeDtypeStruct]) -> Arrays:
        attached = {
            n: jax.device_put(arrays[n], s.sharding) for n, s in abstract.items() if n in arrays
        }
        return attached | base.restore({n: s for n, s in abstract.items() if n not in arrays})

    return stacking.restore_model(methods.abstract(base.model, method), read, mesh, rules)


def adapter_number(method: Method, name: str | None) -> int:
    """The number of an adapter of a bank in `Batch.adapter`; None stands for the base.

    Raises:
      ValueError: there is none of that name.
    """
    if name is None:
        return NO_ADAPTER
    names = method.bank_names
    if name not in names:
        near = tree.nearest(name, names, 1)
        raise ValueError(f"there is no adapter {name!r} in the bank; nearest: {near}")
    return names.index(name)


def _bank_parameter(name: str, own_adapter: str, bank_adapter: str) -> str:
    """The name in a bank of a parameter of an adapter alone."""
    name = name.replace(f"/site/{own_adapter}/", f"/site/{bank_adapter}/each/")
    return name.replace(f"methods/{own_adapter}/", f"methods/{bank_adapter}/")


def _axes(base: Run, method: Method) -> dict[str, tuple[str | None, ...]]:
    """The logical axes of what a method attaches, by single-layer name in a bank."""
    shapes = methods.abstract(base.model, method, methods.single_layers(base.model))
    axes_by_name = {}
    for name, axes in tree.parameter_axes(shapes).items():
        if tree.is_attached(name):
            (single,) = tree.layer_names(name)
            inner = axes[1:] if tree.is_stacked(name) else axes
            axes_by_name[_bank_parameter(single, method.adapter, method.adapter)] = inner
    return axes_by_name


def _pad(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """An array with zeros behind it, up to a shape."""
    whole = np.zeros(shape, array.dtype)
    whole[tuple(map(slice, array.shape))] = array
    return whole


def _describe_difference(method: Method, other: Method) -> str:
    """A method, with those of its settings that another of its kind has otherwise."""
    ours, theirs = schema.to_dict(method), schema.to_dict(other)
    settings = [f"{n} {v}" for n, v in ours.items() if v != theirs.get(n) and n != "kind"]
    same_kind = ours["kind"] == theirs["kind"]
    return method.kind + (f" with {', '.join(settings)}" if settings and same_kind else "")
