"""Adapters as things to hold: what there is in a folder, sums of them, several side by side.

An adapter is a run that was tuned on a base: its folder holds what was attached, and names the base
by its fingerprint. Merging and unmerging are in `research.adapters.merging`.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from research import methods, sharding, tree
from research.checkpoints import runs
from research.checkpoints.checkpoint import Checkpoint
from research.checkpoints.checkpointer import open_checkpoint
from research.checkpoints.runs import Run
from research.config import schema
from research.experiment import Experiment
from research.methods import Method
from research.models.transformer import Transformer
from research.runtime import storage
from research.tree import Arrays

log = logging.getLogger(__name__)

OFF = -1  # a row of `Batch.adapter` that uses none


def find(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """What the tuned runs in a folder and the folders in it are, by path, as rows of a table."""
    found = []
    for path in _runs(storage.absolute(folder)):
        try:
            saved = open_checkpoint(path)
            if saved.metadata()["base"] is not None:
                found.append(describe(saved))
        except (OSError, ValueError, KeyError) as error:
            log.warning("%s is left out: %s", path, error)
    return found


def _runs(folder: epath.Path) -> Iterator[epath.Path]:
    """Every folder with a finished model, by path; in buckets too, which know no `**`."""
    for inside in sorted(folder.iterdir()):
        if inside.name == "model" and storage.is_folder(inside):
            yield folder
        elif inside.name != "checkpoints" and storage.is_folder(inside):
            yield from _runs(inside)


def open_named(texts: Sequence[str], base: str | None = None) -> dict[str, Run]:
    """Runs by name, of texts such as `law=runs/law`.

    Raises:
      ValueError: not such a text, or a name twice.
      FileNotFoundError: no run there.
    """
    named: dict[str, Run] = {}
    for text in texts:
        name, found, path = text.partition("=")
        if not found or not name.isidentifier() or not path:
            raise ValueError(f"{text!r}: write it as NAME=RUN, such as law=runs/law")
        if name in named:
            raise ValueError(f"{text!r}: the name {name} is given twice")
        named[name] = runs.open_run(path, base)
    return named


def describe(saved: Checkpoint) -> dict[str, Any]:
    """What an adapter is, in a row of a table; its base need not be there.

    Raises:
      ValueError: what it says of itself does not fit this version.
    """
    metadata, own = saved.metadata(), saved.checksums("model/")
    method = runs.method_of(metadata, str(saved.path))
    sizes = {name: math.prod(checksum.shape) for name, checksum in own.items()}
    stored = {name: jnp.dtype(own[name].dtype).itemsize * size for name, size in sizes.items()}
    base = metadata["base"]
    return {
        "path": str(saved.path.parent.parent),
        "method": method.kind,
        "adapters": ", ".join(method.bank_names or method.adapter_names),
        "parameters": sum(sizes.values()),
        "bytes": sum(stored.values()),
        "base": base["path"] + ("" if storage.absolute(base["path"]).exists() else " (gone)"),
        "base_fingerprint": base["fingerprint"][:16],
    }


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
    base = _same_base(opened)
    first, *others = (run.method for run in opened)
    if any(other.kind != first.kind for other in others):
        raise ValueError(f"a sum is of one method, not of {[run.method.kind for run in opened]}")
    for run in opened:
        runs.check_parameters(run)
    plain = methods.abstract(base.model, methods.Full(), methods.single_layers(base.model))
    method = first.weighted_sum(others, methods.smaller_sides(plain))
    wanted = tree.unstack_shapes(_attached(methods.abstract(base.model, method)))
    arrays: Arrays = {}
    each = [(weight, _deltas(run)) for weight, run in parts]
    for place, delta in each[0][1].items():
        leaves = type(delta).weighted_sum([(weight, deltas[place]) for weight, deltas in each])
        arrays |= {f"{place}/site/{method.adapter}/{leaf}": a for leaf, a in leaves.items()}
    tree.check_names(wanted, arrays, "arrays of the sum")
    _check_finite(arrays, "the sum")
    facts = {"sum": [[weight, str(run.path)] for weight, run in parts]}
    kept: dict[str, Any] = {"base": base, "experiment": _told_alike(opened), "facts": facts}
    return runs.write(out, base, arrays, base.model, method=method, **kept)


def bank(named: Mapping[str, Run], out: str | os.PathLike[str]) -> Path:
    """Writes adapters of one form on one base side by side, as a run of method `bank`; returns the
    step's folder. Their ranks may differ: a smaller one is filled up with zeros.

    Raises:
      ValueError: other bases, methods or shapes, or numbers that are not finite.
      FileExistsError: the folder holds a model.
    """
    runs.check_free(out)
    base, method, arrays = gather(named)
    told = _told_alike(list(named.values()))
    return runs.write(out, base, arrays, base.model, method=method, base=base, experiment=told)


def _bank_method(named: Mapping[str, Run]) -> Any:
    """The method that holds these runs' adapters.

    Raises:
      ValueError: one of them is no adapter that a bank can hold, or of another method.
    """
    base = _same_base(list(named.values()))
    forms, shapes = {}, {}
    for name, run in named.items():
        method: Any = run.method
        if not method.adapter or method.bank_names:
            raise ValueError(f"{name} is {method.kind}: a bank holds adapters, one of each name")
        alone = dataclasses.replace(method, adapter="one")
        made = methods.abstract(base.model, alone, methods.single_layers(base.model))
        forms[name] = method.kind, jax.tree.structure(made)
        shapes[name] = {leaf: shape.shape for leaf, shape in _attached(made).items()}
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
    base, method = _same_base(list(named.values())), _bank_method(named)
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
    _check_finite(stacked, "the bank")
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
        return mine | base.parameters({n: s for n, s in abstract.items() if n not in arrays})

    return runs.read_model(methods.abstract(base.model, method), read, mesh, rules)


def number(method: Method, name: str | None) -> int:
    """What `Batch.adapter` says for an adapter of a bank; None stands for the base.

    Raises:
      ValueError: there is none of that name.
    """
    if name is None:
        return OFF
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


def _attached(model: Transformer) -> dict[str, Any]:
    """What methods attached to an abstract model."""
    return {name: s for name, s in tree.flatten(model).items() if tree.is_attached(name)}


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


def _check_finite(arrays: Mapping[str, Any], what: str) -> None:
    for name, array in arrays.items():
        if not np.isfinite(np.asarray(array)).all():
            raise ValueError(f"{name} of {what} is not finite everywhere; nothing is written")


def _same_base(opened: Sequence[Run]) -> Run:
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


def _told_alike(opened: Sequence[Run]) -> Experiment | None:
    """The first run's experiment, if all of them write their examples in the same way; so what is
    made of them is asked as they were."""
    first = opened[0].experiment
    for run in opened:
        if run.experiment is None or first is None:
            return None
        ours, theirs = first.data, run.experiment.data
        if (ours.objective, ours.objective_settings) != (
            theirs.objective,
            theirs.objective_settings,
        ):
            return None
    return first


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
