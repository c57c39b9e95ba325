"""Adapters in the format of Hugging Face PEFT, out and in."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from research import paths, runs, sharding, tree
from research.interop import peft_config, peft_prompts, tensor_files
from research.interop.exporting import whole_or_nothing
from research.interop.families import FAMILIES
from research.interop.family import Family, for_model, module_names
from research.interop.fields import UnsupportedModel, malformed
from research.interop.huggingface import read_json
from research.interop.tensor_files import SafeTensors
from research.methods import (
    DoRA,
    Full,
    LoHa,
    LoRA,
    Method,
    Prefix,
    Prompt,
    VeRA,
    abstract,
    places,
    single_layers,
)
from research.methods.attaching import WEIGHTED
from research.models.transformer import Transformer
from research.runs import Run

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
# a delta's leaves -> PEFT's names; all but vectors are transposed
_LEAVES: dict[str, dict[str, str]] = {
    "lora": {"a": "lora_A.weight", "b": "lora_B.weight"},
    "dora": {
        "low/a": "lora_A.weight",
        "low/b": "lora_B.weight",
        "magnitude": "lora_magnitude_vector",
    },
    "ia3": {"factor": "ia3_l"},
    "vera": {"inner": "vera_lambda_d", "outer": "vera_lambda_b"},
    "loha": {
        "first_in": "hada_w1_b",
        "first_out": "hada_w1_a",
        "second_in": "hada_w2_b",
        "second_out": "hada_w2_a",
    },
}
# a delta's leaf that has the rank on its second axis
_RANKED = {"lora": "a", "dora": "low/a", "loha": "first_in"}
_BASE = ".base_layer.weight"
# what VeRA's places share
_PROJECTIONS = {"a": "base_model.vera_A", "b": "base_model.vera_B"}


def export_adapter(run: Run, out: str | Path, base: str, card: str = "") -> list[str]:
    """Writes a run's adapter as PEFT opens it on the base of transformers.

    Args:
      base: what `PeftModel` should know as the base's name.
      card: the text of its README.md.

    Returns:
      The names of the tensors.

    Raises:
      UnsupportedModel: the method is none of PEFT's, or the base none of transformers'.
    """
    tensors, content = adapter_tensors(run)
    content |= {
        "base_model_name_or_path": base,
        "task_type": "CAUSAL_LM",
        "inference_mode": True,
    }
    with whole_or_nothing(out, last=CONFIG) as folder:
        (folder / CONFIG).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        sizes = {name: value.shape for name, value in tensors.items()}
        written = tensor_files.write(folder, sizes, np.float32, 2**63, tensors.__getitem__)
        names = list(written)
        (folder / tensor_files.ONE).rename(folder / WEIGHTS)
        if card:
            (folder / "README.md").write_text(card, encoding="utf-8")
    return names


def adapter_tensors(run: Run) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """PEFT's tensors and config of a run's adapter.

    Raises:
      UnsupportedModel: the method is none of PEFT's, or the base none of transformers'.
      ValueError: numbers that are not finite.
    """
    runs.check_parameters(run)
    method = run.method
    if method.kind not in (*_LEAVES, *peft_prompts.KINDS.values()):
        known = ", ".join((*_LEAVES, *peft_prompts.KINDS.values()))
        raise UnsupportedModel(f"method {method.kind!r} leaves no adapter of PEFT's; {known} do")
    shapes = {
        name.removeprefix("model/"): shape
        for name, shape in run.saved.abstract().items()
        if name.startswith("model/methods/") or (name.startswith("model/") and "/site/" in name)
    }
    arrays = {name: np.asarray(a) for name, a in run.parameters(sharding.spread(shapes)).items()}
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise ValueError(f"{name} holds numbers that are not finite; nothing is exported")
    return tensors_of(run, arrays)


def tensors_of(
    run: Run, arrays: Mapping[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """PEFT's tensors and config of a run's method.

    Args:
      arrays: what the method attached, by single-layer name; others may be among them.

    Raises:
      UnsupportedModel: no family of transformers has the base, or PEFT not this form.
    """
    if isinstance(run.method, Prompt | Prefix):
        tensor, content = peft_prompts.write(run.method, arrays, run.model)
        return {peft_prompts.NAME: tensor}, content
    family, _ = for_model(run.model, FAMILIES, (run.imported or {}).get("family"))
    return _write_places(run.method, arrays, family, set(_linears(run)[1]))


def _write_places(
    method: Method, arrays: Mapping[str, np.ndarray], family: Family, modules: set[str]
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Tensors and config of a method that attaches to weights; `modules` are all of the base's."""
    adapter: str = method.adapter  # type: ignore[attr-defined]
    named = sorted({n.partition("/site/")[0] for n in arrays if "/site/" in n}, key=_order)
    theirs = module_names(family, named)
    tensors: dict[str, np.ndarray] = {}
    scales: dict[str, tuple[int, float]] = {}
    for place in named:
        site = f"{place}/site/{adapter}/"
        held = {n.removeprefix(site): a for n, a in arrays.items() if n.startswith(site)}
        if "first_a" in held:
            # PEFT's PiSSA changes the base; as a LoRA of twice the rank it need not
            held["a"] = np.concatenate([held["a"], -held["first_a"]], axis=1)
            held["b"] = np.concatenate([held["b"], held["first_b"]], axis=0)
        for leaf, name in _leaves(method.kind, place).items():
            value = held[leaf]
            value = value[:, None] if name == "ia3_l" else value.T
            tensors[f"{_PREFIX}{theirs[place]}.{name}"] = value
        low = "low/" if method.kind == "dora" else ""
        if f"{low}scale" in held:
            rank = held[_RANKED[method.kind]].shape[1]
            scales[theirs[place]] = rank, float(held[f"{low}scale"]) * rank
    if isinstance(method, VeRA):
        for ours, name in _PROJECTIONS.items():
            tensors[name] = arrays[f"methods/{adapter}/{ours}"].T
    short = {name.rpartition(".")[2] for name in theirs.values()}
    everywhere = {name for name in modules if name.rpartition(".")[2] in short}
    targets = sorted(short if everywhere == set(theirs.values()) else theirs.values())
    return tensors, peft_config.write(method, scales) | {"target_modules": targets}


@dataclasses.dataclass(frozen=True)
class Adapter:
    """An adapter of PEFT, checked against a base.

    Attributes:
      method: what it is in Graft.
      shapes: what the method attaches, by single-layer name.
      sources: the tensor of each, but for scales, which are the method's.
      made: those that are no tensor of the file, but made of one.
    """

    method: Method
    shapes: Mapping[str, jax.ShapeDtypeStruct]
    sources: Mapping[str, str]
    tensors: SafeTensors
    made: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def read(self, name: str) -> jax.Array:
        """A parameter of the adapter."""
        shape = self.shapes[name].shape
        if name in self.made:
            return jnp.asarray(self.made[name])
        if name not in self.sources:
            assert isinstance(self.method, LoRA | DoRA | LoHa)
            if isinstance(self.method, LoHa):
                return jnp.full(shape, self.method.alpha / self.method.rank)
            linear = name.partition("/site/")[0]
            rank = tree.first_match(self.method.ranks, linear, self.method.rank)
            alpha = tree.first_match(self.method.alphas, linear, self.method.alpha)
            return jnp.full(shape, alpha / rank)
        source = self.sources[name]
        value = self.tensors.read(source, tuple(slice(None) for _ in self.tensors.shapes[source]))
        value = value.reshape(-1) if len(shape) == 1 else value.T
        return jnp.asarray(np.ascontiguousarray(value, np.float32))


def open_adapter(path: str | Path, base: Run) -> Adapter:
    """Opens an adapter's folder and checks that it fits the base.

    Raises:
      FileNotFoundError: no adapter there.
      UnsupportedModel: a kind or a setting that Graft does not have, or tensors that do not fit.
    """
    path = paths.local(path, "the adapter")
    if not (path / CONFIG).is_file():
        raise FileNotFoundError(f"{path} has no {CONFIG}: no adapter of PEFT")
    with malformed(str(path)):
        return _open(path, base)


def _open(path: Path, base: Run) -> Adapter:
    content, where = read_json(path / CONFIG), str(path / WEIGHTS)
    tensors = SafeTensors(path / WEIGHTS)
    plain, modules = _linears(base)
    if content.get("peft_type") in peft_prompts.KINDS:
        return _open_prompts(content, tensors, plain, base, where)
    held: dict[str, dict[str, str]] = {}
    for name in tensors.shapes:
        if name in _PROJECTIONS.values():
            continue
        if name.endswith(_BASE):
            _check_unchanged(name, tensors, modules, base, where)
            continue
        module, leaf = _split(name)
        if content.get("peft_type") == "IA3":
            module = _scaled(module, content.get("feedforward_modules"), modules, base, where)
        if module not in modules:
            near = tree.nearest(module, modules, 1)
            raise UnsupportedModel(f"{where}: {name} is for no linear of this base ({near} is)")
        if leaf in held.setdefault(modules[module], {}):
            raise UnsupportedModel(f"{where}: {name} scales what another tensor scales too")
        held[modules[module]][leaf] = name
    named = {ours: theirs for theirs, ours in modules.items() if ours in held}
    method = peft_config.read(content, str(path / CONFIG), named)
    whole = tree.flatten(jax.eval_shape(method.attach, plain, jax.random.key(0)))
    attached = {name: whole[name] for name in whole if name not in tree.flatten(plain)}
    shapes, sources = tree.unstack_shapes(attached), {}
    for name, shape in shapes.items():
        linear, _, rest = name.partition("/site/")
        leaf, leaves = rest.partition("/")[2], _leaves(method.kind, linear)
        if name.startswith("methods/"):
            found = _PROJECTIONS[name.rpartition("/")[2]]
            source = found if found in tensors.shapes else None
            leaves = {leaf: f"{found}, which PEFT writes with save_projection,"}
        elif leaf not in leaves:
            continue  # the scale
        else:
            source = held[linear].pop(leaves[leaf], None)
        if source is None:
            raise UnsupportedModel(f"{where}: {leaves[leaf]} of {linear} is missing")
        given = tensors.shapes[source]
        fits = math.prod(given) == shape.shape[0] if len(shape.shape) == 1 else None
        if not (given[::-1] == shape.shape if fits is None else fits):
            raise UnsupportedModel(f"{where}: {source} has shape {given}, not {shape.shape[::-1]}")
        sources[name] = source
    surplus = [name for left in held.values() for name in left.values()]
    if surplus:
        raise UnsupportedModel(f"{where}: {surplus[0]} is no part of a {method.kind}")
    return Adapter(method, shapes, sources, tensors)


def _open_prompts(
    content: Mapping[str, Any], tensors: SafeTensors, plain: Transformer, base: Run, where: str
) -> Adapter:
    if list(tensors.shapes) != [peft_prompts.NAME]:
        raise UnsupportedModel(f"{where} holds {list(tensors.shapes)}, not {peft_prompts.NAME}")
    tensor = tensors.read(peft_prompts.NAME, (slice(None), slice(None)))
    method, made = peft_prompts.read(content, tensor, base.model, where)
    whole = tree.flatten(jax.eval_shape(method.attach, plain, jax.random.key(0)))
    shapes = tree.unstack_shapes({n: s for n, s in whole.items() if "/site/" in n})
    tree.check_names(shapes, made, where)
    return Adapter(method, shapes, {}, tensors, made)


def import_adapter(path: str | Path, base: Run, out: str | Path) -> Path:
    """Writes an adapter of PEFT as a run that was tuned from `base`; returns the step's folder.

    Raises:
      FileExistsError: there is a model already.
      UnsupportedModel, FileNotFoundError: as `open_adapter`.
    """
    runs.check_free(out)
    if base.base is not None:
        raise UnsupportedModel(
            f"{base.saved.path} is an adapter itself: --base takes whole models, such as its own "
            f"base {base.base.saved.path}, or what tools/adapters.py merge makes of it"
        )
    adapter = open_adapter(path, base)
    arrays = {name: adapter.read(name) for name in adapter.shapes}
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise UnsupportedModel(f"{path}: {name} holds numbers that are not finite")
    return runs.write(out, base, arrays, base.model, method=adapter.method, base=base)


def _linears(base: Run) -> tuple[Transformer, dict[str, str]]:
    """The base in single layers, abstractly, and its linears by transformers' names."""
    plain = abstract(base.model, Full(), single_layers(base.model))
    family, _ = for_model(base.model, FAMILIES, (base.imported or {}).get("family"))
    together = {form for group in family.joined.values() for form in group}
    every = [name for name, _ in places(plain, *WEIGHTED)]
    names = [n for name in every for n in tree.layer_names(name)]
    names = [name for name in names if re.sub(r"/\d+/", "/*/", name) not in together]
    return plain, {theirs: ours for ours, theirs in module_names(family, names).items()}


def _check_unchanged(
    name: str, tensors: SafeTensors, modules: Mapping[str, str], base: Run, where: str
) -> None:
    """PEFT saves the base's table beside an adapter on it: it must be the base's own."""
    module = name.removeprefix(_PREFIX).removesuffix(_BASE)
    if module not in modules:
        near = tree.nearest(module, modules, 1)
        raise UnsupportedModel(f"{where}: {name} is for no linear of this base ({near} is)")
    weight = f"{modules[module]}/kernel"
    own = np.asarray(base.read(weight)[weight], np.float32)
    own = own if modules[module] == "embedding" else own.T
    given = tensors.read(name, (slice(None), slice(None)))
    # it may have been rounded to the type in which the adapter was saved
    if given.shape != own.shape or not np.allclose(given, own, rtol=1e-2, atol=1e-6):
        raise UnsupportedModel(f"{where}: {name} is another one than the base's; merge it in PEFT")


def _scaled(module: str, inputs: Any, modules: Mapping[str, str], base: Run, where: str) -> str:
    """The module whose output IA3 scales. PEFT scales the input of `feedforward_modules`: of a
    gated MLP's last linear that is the output of the one that is not activated."""
    if not isinstance(inputs or [], list):
        raise UnsupportedModel(f"{where}: feedforward_modules is {inputs!r}; give names in a list")
    if not any(module == name or module.endswith(f".{name}") for name in inputs or []):
        return module
    place = modules.get(module, "")
    if not (place.endswith("mlp/down") and base.model.gated):
        raise UnsupportedModel(
            f"{where}: the input of {module} is scaled; Graft's IA3 scales outputs, and takes the "
            "last linear of a gated MLP besides"
        )
    up = place.removesuffix("down") + "up"
    return next(theirs for theirs, ours in modules.items() if ours == up)


def _leaves(kind: str, place: str) -> dict[str, str]:
    """A delta's leaves -> PEFT's names."""
    if kind == "lora" and place == "embedding":
        return {"a": "lora_embedding_A", "b": "lora_embedding_B"}
    return _LEAVES[kind]


def _split(name: str) -> tuple[str, str]:
    """A tensor's name -> its module's and its leaf's."""
    bare = name.removeprefix(_PREFIX)
    module, found, leaf = bare.rpartition(".lora_")
    if found:
        return module, f"lora_{leaf}"
    module, _, leaf = bare.rpartition(".")
    return module, leaf


def _order(name: str) -> list[Any]:
    return [int(part) if part.isdigit() else part for part in name.split("/")]
