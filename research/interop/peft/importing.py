"""Imports adapters of Hugging Face PEFT as runs, checked against their base."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from research import tree
from research.checkpoints import runs
from research.checkpoints.runs import Run
from research.interop import folder_contents
from research.interop.fields import UnsupportedModelError, refuse_malformed
from research.interop.huggingface import read_json
from research.interop.peft import (
    config,
    prompts,
    saved_weights,
    switches,
    targets,
    tokenizer_files,
)
from research.interop.peft.exporting import (
    CONFIG,
    PROJECTIONS,
    WEIGHTS,
    leaves_of,
)
from research.interop.peft.joined import INPUT_LEAVES, PREFIX, TargetModules, target_modules
from research.interop.peft.saved_weights import SavedWeights
from research.interop.peft.tokenizer_files import TokenizerFiles
from research.interop.tensor_files import DTYPES, SafeTensors, is_finite, not_finite, pickle_advice
from research.methods import (
    DoRA,
    LoHa,
    LoRA,
    Method,
    Partial,
    Several,
    VeRA,
    smaller_sides,
)
from research.models.transformer import Transformer
from research.runtime import storage

_OFT = ".oft_R.weight"
_PICKLES = ("adapter_model.bin", "adapter_model.pt")


@dataclasses.dataclass(frozen=True)
class TensorPart:
    """A tensor of an adapter's file, or some of its outputs.

    Attributes:
      name: the tensor's.
      columns: which of its outputs; None: all.
      width: how many outputs the tensor has; None: as many as the linear.
    """

    name: str
    columns: slice | None = None
    width: int | None = None


@dataclasses.dataclass(frozen=True)
class Adapter:
    """An adapter of PEFT, checked against a base.

    Attributes:
      method: what it is in Graft.
      shapes: what the method attaches, by single-layer name.
      sources: where each stands in the file, but for scales, which are the method's.
      saved: what else the file holds, of the base.
      tokenizer_files: its tokenizer, and what belongs to it.
      notes: where it is not what its base or its name says.
      arrays: those that are no tensor of the file, but made of one.
    """

    method: Method
    shapes: Mapping[str, jax.ShapeDtypeStruct]
    sources: Mapping[str, TensorPart]
    tensors: SafeTensors
    saved: SavedWeights
    arrays: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    tokenizer_files: TokenizerFiles | None = None
    notes: tuple[str, ...] = ()

    @property
    def run_method(self) -> Method:
        """The method of a run that holds all of the file."""
        if not self.saved.arrays:
            return self.method
        patterns = config.place_patterns(list(self.saved.trainable))
        return Several((self.method, Partial(patterns)))

    def read(self, name: str) -> jax.Array:
        """A parameter of the adapter."""
        shape = self.shapes[name].shape
        if name in self.arrays:
            return jnp.asarray(self.arrays[name])
        if name not in self.sources:
            assert isinstance(self.method, LoRA | DoRA | LoHa)
            if isinstance(self.method, LoHa):
                return jnp.full(shape, self.method.alpha / self.method.rank)
            linear = name.partition("/site/")[0]
            rank = tree.first_match(self.method.ranks, linear, self.method.rank)
            alpha = tree.first_match(self.method.alphas, linear, self.method.alpha)
            return jnp.full(shape, alpha / rank)
        part = self.sources[name]
        everything = tuple(slice(None) for _ in self.tensors.shapes[part.name])
        value = self.tensors.read(part.name, everything)
        if part.name.endswith(_OFT):
            value = -value  # PEFT's rotation is (I - Q) (I + Q)^-1
        else:
            value = value.reshape(-1) if len(shape) == 1 else value.T
        if part.columns is not None:
            value = value[..., part.columns]
        return jnp.asarray(np.ascontiguousarray(value, np.float32))


def open_adapter(path: str | Path, base: Run) -> Adapter:
    """Opens an adapter's folder and checks that it fits the base.

    Raises:
      FileNotFoundError: no adapter there.
      UnsupportedModelError: a kind or a setting that Graft does not have, tensors that do not fit,
        or a base that is an adapter.
    """
    path = storage.require_local(path, "the adapter")
    if base.base is not None:
        raise UnsupportedModelError(
            f"{base.path} is an adapter itself: --base takes whole models, such as its own "
            f"base {base.base.path}, or what graft adapters merge makes of it"
        )
    if not (path / CONFIG).is_file():
        raise FileNotFoundError(f"{path} has no {CONFIG}: no adapter of PEFT")
    with refuse_malformed(str(path)):
        content = read_json(path / CONFIG)
        switches.check(content, str(path / CONFIG))
        _check_weights(path)
        folder_contents.check_adapter(path)
        tokenizer_files.check_size(path, base)
        adapter = _open(path, content, base)
    own = tokenizer_files.read(path, base)
    copies = [f"{name} is not read" for name in _PICKLES if (path / name).is_file()]
    notes = (*_notes(content, adapter, base), *copies, *own.notes)
    return dataclasses.replace(adapter, tokenizer_files=own, notes=notes)


def _notes(content: Mapping[str, Any], adapter: Adapter, base: Run) -> list[str]:
    notes = []
    name, source = content.get("base_model_name_or_path"), (base.origin or {}).get("source")
    if isinstance(name, str) and name and source and Path(name).name != source:
        notes.append(f"it says that it was tuned on {name}; the base was imported from {source}")
    for parameter in adapter.saved.arrays:
        notes.append(f"{parameter} goes before the base's own")
    if adapter.saved.model != base.model:
        notes.append("embedding and head are one table in the base, and two with this adapter")
    return notes


def _check_weights(path: Path) -> None:
    """Refuses a folder without the tensors, and says what is there in their place.

    Raises:
      FileNotFoundError: nothing.
      UnsupportedModelError: a pickle.
    """
    if (path / WEIGHTS).is_file():
        return
    for name in _PICKLES:
        if (path / name).is_file():
            advice = pickle_advice(name, "PeftModel.from_pretrained(...).save_pretrained(FOLDER)")
            raise UnsupportedModelError(f"{path} has no {WEIGHTS}; {advice}")
    raise FileNotFoundError(f"{path} has no {WEIGHTS}")


def _open(path: Path, content: Mapping[str, Any], base: Run) -> Adapter:
    where, tensors = str(path / WEIGHTS), SafeTensors(path / WEIGHTS)
    for name, dtype in tensors.dtypes.items():
        if dtype not in DTYPES:
            types = ", ".join(DTYPES)
            raise UnsupportedModelError(f"{where}: {name} is of type {dtype}; Graft reads {types}")
    saved = saved_weights.read(content, tensors, base, where)
    plain, modules = target_modules(base, saved.model)
    if content["peft_type"] in prompts.KINDS:
        return _open_prompts(content, tensors, plain, base, saved, where)
    targets.check_tied(content, saved.model, modules, where)
    parts = _tensors_by_linear(content, tensors, modules, base, saved, where)
    # in the base's order, not the file's
    linears = [linear for group in modules.linears.values() for linear in group if linear in parts]
    names = {linear: modules.module_of(linear) for linear in linears}
    sides = smaller_sides(plain)
    method, ranks = config.read(content, str(path / CONFIG), names, sides)
    if not isinstance(method, LoRA) and "embedding" in names:
        raise UnsupportedModelError(
            f"{where}: Graft's {method.kind} is for linears, not the embedding"
        )
    _check_joined(method, names, modules, where)
    over = [place for place, rank in ranks.items() if rank > sides[place]]
    if over and isinstance(method, LoHa):
        raise UnsupportedModelError(
            f"{where}: rank {ranks[over[0]]} of {names[over[0]]} is over the smaller side of its "
            f"weight, {sides[over[0]]}; Graft's loha takes no such rank"
        )
    whole = tree.flatten(jax.eval_shape(method.attach, plain, jax.random.key(0)))
    base_names = tree.flatten(plain)
    shapes = tree.unstack_shapes({name: whole[name] for name in whole if name not in base_names})
    sources = _sources(method.kind, shapes, parts, ranks, tensors, where)
    arrays: dict[str, np.ndarray] = {}
    adapter = Adapter(method, shapes, sources, tensors, saved, arrays)
    for place in over:
        arrays |= _of_full_rank(adapter, place)
    return adapter


def _tensors_by_linear(
    content: Mapping[str, Any],
    tensors: SafeTensors,
    modules: TargetModules,
    base: Run,
    saved: SavedWeights,
    where: str,
) -> dict[str, dict[str, TensorPart]]:
    """The tensors, or parts of them, of each linear's adapter, by PEFT's names of leaves."""
    parts: dict[str, dict[str, TensorPart]] = {}
    names = set()
    for tensor in tensors.shapes:
        if tensor in PROJECTIONS.values() or tensor in saved.tensors:
            continue
        if not tensor.startswith(PREFIX):
            raise UnsupportedModelError(
                f"{where}: {tensor} does not begin with {PREFIX}, so that PEFT would not load it: "
                "name all tensors so, or save the adapter with PEFT"
            )
        module, leaf = _split(tensor)
        names.add(module)
        if module not in modules.linears:
            raise _no_module(tensor, module, modules, where)
        here = {
            linear: TensorPart(tensor, columns, modules.width(module))
            for linear, columns in modules.columns(module).items()
        }
        inputs = content.get("feedforward_modules")
        if content.get("peft_type") == "IA3" and targets.scales_input(module, inputs, where):
            here = {targets.scaled_linear(module, modules, base, where): TensorPart(tensor)}
        for linear, part in here.items():
            if leaf in parts.setdefault(linear, {}):
                raise UnsupportedModelError(
                    f"{where}: {tensor} scales what another tensor scales too"
                )
            parts[linear][leaf] = part
    targets.check(content, modules.linears, names, where)
    return parts


def _check_joined(
    method: Method, names: Mapping[str, str], modules: TargetModules, where: str
) -> None:
    """Refuses what no methods of Graft's can say of the parts of a joined module."""
    for name in names.values() if isinstance(method, VeRA) else ():
        if len(modules.linears[name]) > 1:
            raise UnsupportedModelError(
                f"{where}: {name} is {' and '.join(modules.linears[name])} in Graft, which share "
                "other rows of VeRA's projections; merge it in PEFT"
            )


def _no_module(
    tensor: str, module: str, modules: TargetModules, where: str
) -> UnsupportedModelError:
    near = tree.nearest(module, modules.linears, 1)
    return UnsupportedModelError(f"{where}: {tensor} is for no linear of this base ({near} is)")


def _sources(
    kind: str,
    shapes: Mapping[str, jax.ShapeDtypeStruct],
    parts: Mapping[str, dict[str, TensorPart]],
    ranks: Mapping[str, int],
    tensors: SafeTensors,
    where: str,
) -> dict[str, TensorPart]:
    """The tensor of each parameter but scales; every tensor must be one's, and of its shape."""
    sources = {}
    for name, shape in shapes.items():
        linear, _, rest = name.partition("/site/")
        leaf, leaves = rest.partition("/")[2], leaves_of(kind, linear)
        if name.startswith("methods/"):
            tensor = PROJECTIONS[name.rpartition("/")[2]]
            part = TensorPart(tensor) if tensor in tensors.shapes else None
            leaves = {leaf: f"{tensor}, which PEFT writes with save_projection,"}
        elif leaf not in leaves:
            continue  # the scale
        else:
            part = parts[linear].pop(leaves[leaf], None)
        if part is None:
            raise UnsupportedModelError(f"{where}: {leaves[leaf]} of {linear} is missing")
        *rows, width = shape.shape
        if leaf in INPUT_LEAVES.get(kind, ()):
            part, width = TensorPart(part.name), ranks.get(linear, width)
        else:
            width = part.width or width
            if leaf in ("b", "low/b") and linear in ranks:
                rows = [ranks[linear]]
        expected, actual = (*rows, width), tensors.shapes[part.name]
        if kind != "oft":  # whose tensors lie as PEFT's
            expected = expected[::-1]
        if actual != expected and (rows or math.prod(actual) != width):
            raise UnsupportedModelError(f"{where}: {part.name} has shape {actual}, not {expected}")
        sources[name] = part
    surplus = [part.name for leaves in parts.values() for part in leaves.values()]
    if surplus:
        raise UnsupportedModelError(f"{where}: {surplus[0]} is no part of a {kind}")
    return sources


def _of_full_rank(adapter: Adapter, place: str) -> dict[str, np.ndarray]:
    """A product of more ranks than the weight's smaller side, as one of so many, by name."""
    here = [name for name in adapter.sources if name.startswith(f"{place}/site/")]
    (a,), (b,) = ([name for name in here if name.endswith(end)] for end in ("/a", "/b"))
    product = np.asarray(adapter.read(a)) @ np.asarray(adapter.read(b))
    identity = np.eye(min(product.shape), dtype=np.float32)
    return {a: identity, b: product} if len(product) == len(identity) else {a: product, b: identity}


def _open_prompts(
    content: Mapping[str, Any],
    tensors: SafeTensors,
    plain: Transformer,
    base: Run,
    saved: SavedWeights,
    where: str,
) -> Adapter:
    if list(tensors.shapes) != [prompts.NAME]:
        raise UnsupportedModelError(f"{where} holds {list(tensors.shapes)}, not {prompts.NAME}")
    tensor = tensors.read(prompts.NAME, (slice(None), slice(None)))
    method, arrays = prompts.read(content, tensor, base.model, where)
    whole = tree.flatten(jax.eval_shape(method.attach, plain, jax.random.key(0)))
    shapes = tree.unstack_shapes({n: s for n, s in whole.items() if "/site/" in n})
    tree.check_names(shapes, arrays, where)
    return Adapter(method, shapes, {}, tensors, saved, arrays)


def import_adapter(path: str | Path, base: Run, out: str | Path) -> Path:
    """Writes an adapter of PEFT as a run that was tuned from `base`; returns the step's folder.

    Raises:
      FileExistsError: there is a model already.
      UnsupportedModelError, FileNotFoundError: as `open_adapter`.
    """
    runs.check_free(out)
    adapter = open_adapter(path, base)
    arrays = read_arrays(adapter, str(path))
    own = adapter.tokenizer_files
    assert own is not None
    return runs.write(
        out,
        base,
        arrays,
        adapter.saved.model,
        method=adapter.run_method,
        base=base,
        tokenizer=own.tokenizer,
        sidecar_files=own.files,
    )


def read_arrays(adapter: Adapter, where: str) -> dict[str, Any]:
    """Every parameter of the run that an adapter becomes, by single-layer name.

    Raises:
      UnsupportedModelError: numbers that are not finite.
    """
    attached = {name: adapter.read(name) for name in adapter.shapes}
    arrays: dict[str, Any] = {**attached, **adapter.saved.arrays}
    for name, array in arrays.items():
        if not is_finite(np.asarray(array)):
            raise UnsupportedModelError(f"{where}: {not_finite(name, np.asarray(array))}")
    return arrays


def _split(name: str) -> tuple[str, str]:
    """Splits a tensor's name into its module's and its leaf's."""
    bare = name.removeprefix(PREFIX)
    for kind in ("lora_", "oft_"):  # whose leaves are modules themselves
        module, is_kind, leaf = bare.rpartition(f".{kind}")
        if is_kind:
            return module, f"{kind}{leaf}"
    module, _, leaf = bare.rpartition(".")
    return module, leaf
