"""LoRA as a GGUF file that llama.cpp adds to its base (`--lora`), out and in.

Each target has `NAME.weight.lora_a` [R,I] and `NAME.weight.lora_b` [O,R], whose product is scaled
by `adapter.lora.alpha` over the rank; rows of a Llama's queries and keys are in llama.cpp's rotary
order.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import jax
import numpy as np

from research import tree
from research.checkpoints import runs
from research.checkpoints.runs import Run
from research.interop.exporting import whole_file
from research.interop.families import FAMILIES
from research.interop.family import (
    family_for_model,
    module_name,
    parameter_shapes,
    sources,
)
from research.interop.fields import UnsupportedModelError, refuse_malformed
from research.interop.gguf.architectures import name_of_family, rotary_heads, tensor_names
from research.interop.gguf.tensors import (
    GGUFTensors,
    interleave_halves,
    open_parts,
    split_halves,
)
from research.interop.peft import config as peft_config
from research.interop.peft import exporting as peft
from research.interop.peft.joined import target_modules
from research.methods import LoRA, smaller_sides
from research.runtime import storage

TYPE, ALPHA = "adapter.type", "adapter.lora.alpha"
# Graft's own key; llama.cpp passes over what it does not know
FINGERPRINT = "graft.base.fingerprint"
_A, _B = ".weight.lora_a", ".weight.lora_b"
_MERGE = "merge it (--format gguf), which writes the whole model"
# which say nothing about what is added
_WITHOUT_EFFECT = ("adapter.lora.task_name",)


@dataclasses.dataclass(frozen=True)
class Target:
    """A tensor of llama.cpp's that an adapter can be for.

    Attributes:
      linears: those of Graft whose outputs it holds, in order; mostly one.
      module: transformers' name for it.
      heads: how many heads its rows are, where they are in llama.cpp's rotary order; else 0.
    """

    linears: tuple[str, ...]
    module: str
    heads: int


def targets_of(base: Run) -> tuple[str, dict[str, Target]]:
    """llama.cpp's architecture of a base, and its tensors that an adapter can be for, by name."""
    family, _ = family_for_model(base.model, FAMILIES, (base.origin or {}).get("family"))
    kind, names = name_of_family(family.kind), tensor_names(family)
    heads = rotary_heads(kind, base.model, sources(names, parameter_shapes(base.model)))
    _, modules = target_modules(base)
    targets = {}
    for module, linears in modules.linears.items():
        # the table stands for two things where it is tied, and llama.cpp has one tensor
        if linears[0] == "embedding" or (linears[0] == "head" and base.model.tie_embeddings):
            continue
        name = module_name(names, linears[0])
        targets[name] = Target(linears, module, heads.get(f"{name}.weight", 0))
    return kind, targets


def plan(run: Run) -> tuple[str, float, dict[str, np.ndarray]]:
    """llama.cpp's architecture, the alpha and the tensors of a run's adapter.

    Raises:
      UnsupportedModelError: llama.cpp has no such adapter, architecture or target.
      ValueError: numbers that are not finite.
    """
    if not isinstance(run.method, LoRA) or run.base is None:
        raise UnsupportedModelError(
            f"method {run.method.kind!r} leaves no adapter of llama.cpp's, which adds LoRA alone; "
            f"{_MERGE}"
        )
    if run.tokenizer.fingerprint() != run.base.tokenizer.fingerprint():
        raise UnsupportedModelError(
            f"the run has another tokenizer than its base, whose own llama.cpp uses; {_MERGE}"
        )
    kind, targets = targets_of(run)
    by_module = {target.module: (name, target) for name, target in targets.items()}
    theirs, content = peft.adapter_tensors(run)
    alpha = float(content["lora_alpha"])
    tensors: dict[str, np.ndarray] = {}
    for tensor, value in theirs.items():
        module, _, leaf = tensor.removeprefix(peft.PREFIX).rpartition(".lora_")
        if module not in by_module or leaf not in ("A.weight", "B.weight"):
            raise UnsupportedModelError(
                f"{tensor}: llama.cpp adds adapters to linears, not to an embedding or a tied head;"
                f" {_MERGE}"
            )
        name, target = by_module[module]
        if leaf == "A.weight":
            tensors[f"{name}{_A}"] = value
            continue
        # one alpha for the file: what differs goes into the factor
        ratio = content.get("alpha_pattern", {}).get(module, alpha) / alpha
        value = value if ratio == 1 else value * np.float32(ratio)
        tensors[f"{name}{_B}"] = interleave_halves(value, target.heads) if target.heads else value
    return kind, alpha, tensors


def export_adapter(run: Run, out: str | Path) -> list[str]:
    """Writes a run's adapter as llama.cpp adds it to the base; returns the names of its tensors.

    Raises:
      FileExistsError: the file is there.
      UnsupportedModelError, ValueError: as `plan`.
    """
    kind, alpha, tensors = plan(run)
    assert run.base is not None
    with whole_file(out) as partial:
        writer = gguf.GGUFWriter(partial, kind)
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string(TYPE, "lora")
        writer.add_float32(ALPHA, alpha)
        writer.add_string("general.base_model.0.name", base_name(run))
        writer.add_uint32("general.base_model.count", 1)
        writer.add_string(FINGERPRINT, run.base.fingerprint)
        for name, value in tensors.items():
            writer.add_tensor(name, np.ascontiguousarray(value, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return list(tensors)


def base_name(run: Run) -> str:
    """What a run's base is called where it came from."""
    return str((run.origin or {}).get("source", "the base that it was tuned from"))


def is_file(path: str | Path) -> bool:
    """Whether a path is a GGUF file."""
    place = storage.require_local(path, "the adapter")
    if not place.is_file():
        return False
    with place.open("rb") as file:
        return file.read(4) == b"GGUF"


@dataclasses.dataclass(frozen=True)
class GGUFAdapter:
    """An adapter of llama.cpp, checked against a base.

    Attributes:
      arrays: what the method attaches, by single-layer name.
      tensors: where each factor stands in the file.
    """

    method: LoRA
    arrays: Mapping[str, np.ndarray]
    tensors: Mapping[str, str]


def open_adapter(path: str | Path, base: Run) -> GGUFAdapter:
    """Opens an adapter's file and checks that it fits the base.

    Raises:
      UnsupportedModelError: another kind of file, another base, or tensors that do not fit.
    """
    path = storage.require_local(path, "the adapter")
    with refuse_malformed(str(path)):
        metadata, tensors = open_parts(path)
        kind, targets = targets_of(base)
        _check(metadata, kind, base, str(path))
        return _attach(metadata, tensors, targets, base, str(path))


def import_adapter(path: str | Path, base: Run, out: str | Path) -> Path:
    """Writes an adapter of llama.cpp as a run that was tuned from `base`.

    Returns:
      The step's folder.

    Raises:
      FileExistsError: there is a model already.
      UnsupportedModelError: as `open_adapter`, or the base is an adapter itself.
    """
    runs.check_free(out)
    if base.base is not None:
        raise UnsupportedModelError(
            f"{base.path} is an adapter itself: --base takes whole models, such as its own "
            f"base {base.base.path}, or what graft adapters merge makes of it"
        )
    adapter = open_adapter(path, base)
    return runs.write(out, base, adapter.arrays, base.model, method=adapter.method, base=base)


def _check(metadata: Mapping[str, Any], kind: str, base: Run, where: str) -> None:
    """Refuses what is no LoRA, or one of another base."""
    purpose, form = metadata.get("general.type"), metadata.get(TYPE)
    if purpose != "adapter" or form != "lora":
        raise UnsupportedModelError(
            f"{where}: general.type is {purpose!r} and {TYPE} {form!r}: no LoRA of llama.cpp's"
            + ("; a model is imported without --base" if purpose in (None, "model") else "")
        )
    if (architecture := metadata.get("general.architecture")) != kind:
        raise UnsupportedModelError(
            f"{where} is for the architecture {architecture!r}, the base is {kind!r}"
        )
    own = metadata.get(FINGERPRINT, base.fingerprint)
    if own != base.fingerprint:
        raise UnsupportedModelError(
            f"{where} was tuned on another base ({FINGERPRINT} {own}, not {base.fingerprint})"
        )
    for name, value in metadata.items():
        is_other = name.startswith("adapter.") and name not in (TYPE, ALPHA, *_WITHOUT_EFFECT)
        if is_other and value not in ("", [], 0):
            raise UnsupportedModelError(
                f"{where}: {name} is {value!r:.60}, which Graft's LoRA has not"
            )


def _attach(
    metadata: Mapping[str, Any],
    tensors: GGUFTensors,
    targets: Mapping[str, Target],
    base: Run,
    where: str,
) -> GGUFAdapter:
    """The method and its arrays from a file's tensors."""
    pairs = _pairs(tensors, targets, where)
    plain, modules = target_modules(base)
    alpha = float(metadata.get(ALPHA, 0.0))
    # without an alpha llama.cpp scales by 1
    scales = {name: alpha / len(a) if alpha else 1.0 for name, (a, _) in pairs.items()}
    method = _method(pairs, scales, targets, smaller_sides(plain), where)
    shapes = tree.flatten(jax.eval_shape(method.attach, plain, jax.random.key(0)))
    attached = tree.unstack_shapes({name: s for name, s in shapes.items() if "/site/" in name})
    arrays: dict[str, np.ndarray] = {}
    names: dict[str, str] = {}
    for name, (a, b) in pairs.items():
        for linear, columns in modules.columns(targets[name].module).items():
            site = f"{linear}/site/{method.adapter}"
            arrays[f"{site}/a"], arrays[f"{site}/b"] = a.T, b.T[:, columns]
            shape = attached[f"{site}/scale"].shape
            arrays[f"{site}/scale"] = np.full(shape, scales[name], np.float32)
            names |= {f"{site}/a": f"{name}{_A}", f"{site}/b": f"{name}{_B}"}
    tree.check_names(attached, arrays, where)
    for name, array in arrays.items():
        if array.shape != attached[name].shape:
            raise UnsupportedModelError(
                f"{where}: {names[name]} gives {name} the shape {array.shape}, not "
                f"{attached[name].shape}: another base?"
            )
        if not np.isfinite(array).all():
            raise UnsupportedModelError(f"{where}: {names[name]} holds numbers that are not finite")
    return GGUFAdapter(method, arrays, names)


def _method(
    pairs: Mapping[str, tuple[np.ndarray, np.ndarray]],
    scales: Mapping[str, float],
    targets: Mapping[str, Target],
    sides: Mapping[str, int],
    where: str,
) -> LoRA:
    """A LoRA with the rank and the scale of each target."""
    ranks, alphas, places = {}, {}, {}
    for name, (a, _) in pairs.items():
        module = targets[name].module
        ranks[module], alphas[module] = len(a), scales[name] * len(a)
        for linear in targets[name].linears:
            places[linear] = module
            if len(a) > sides[linear]:
                raise UnsupportedModelError(
                    f"{where}: {name} has rank {len(a)}, over the smaller side of {linear}, "
                    f"{sides[linear]}"
                )
    content = {
        "peft_type": "LORA",
        "r": next(iter(ranks.values())),
        "lora_alpha": next(iter(alphas.values())),
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
    }
    method, _ = peft_config.read(content, where, places, sides)
    assert isinstance(method, LoRA)
    return method


def _pairs(
    tensors: GGUFTensors, targets: Mapping[str, Target], where: str
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """A [R,I] and B [O,R] of each target, rows in Graft's order."""
    ends = (_A, _B)
    pairs = {}
    for tensor in tensors.shapes:
        name = next((tensor.removesuffix(end) for end in ends if tensor.endswith(end)), None)
        if name not in targets:
            near = tree.nearest(str(name or tensor), targets, 1)
            raise UnsupportedModelError(
                f"{where}: {tensor} is for no linear of this base ({near} is)"
                + ("; Graft reads no norms of an adapter" if "_norm" in tensor else "")
            )
    for name in targets:  # in the base's order, not the file's
        present = [f"{name}{end}" in tensors.shapes for end in ends]
        if not any(present):
            continue
        if not all(present):
            raise UnsupportedModelError(f"{where}: {name}{ends[present.index(False)]} is missing")
        if any(len(tensors.shapes[f"{name}{end}"]) != 2 for end in ends):
            raise UnsupportedModelError(f"{where}: the factors of {name} are no matrices")
        everything = (slice(None), slice(None))
        a, b = (np.asarray(tensors.read(f"{name}{end}", everything), np.float32) for end in ends)
        if len(a) != b.shape[1]:
            raise UnsupportedModelError(
                f"{where}: {name} has factors {a.shape} and {b.shape}, which do not multiply"
            )
        heads = targets[name].heads
        if heads and len(b) % (2 * heads):
            raise UnsupportedModelError(
                f"{where}: {name} has {len(b)} outputs, not {heads} heads: another base?"
            )
        pairs[name] = a, split_halves(b, heads) if heads else b
    if not pairs:
        raise UnsupportedModelError(f"{where} holds no tensors of an adapter")
    return pairs
