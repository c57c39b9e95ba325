"""Adapters of Hugging Face PEFT, read: checked against a base, and written as runs."""

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
from research.interop.fields import UnsupportedModel, malformed
from research.interop.huggingface import read_json
from research.interop.peft import config, prompts, targets
from research.interop.peft.exporting import (
    CONFIG,
    PREFIX,
    PROJECTIONS,
    WEIGHTS,
    leaves_of,
    linears,
)
from research.interop.tensor_files import SafeTensors
from research.methods import DoRA, LoHa, LoRA, Method, smaller_sides
from research.models.transformer import Transformer
from research.runtime import storage

_BASE = ".base_layer.weight"


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
    path = storage.local(path, "the adapter")
    for file in (CONFIG, WEIGHTS):
        if not (path / file).is_file():
            raise FileNotFoundError(f"{path} has no {file}: no adapter of PEFT, or an older form")
    with malformed(str(path)):
        return _open(path, base)


def _open(path: Path, base: Run) -> Adapter:
    content, where = read_json(path / CONFIG), str(path / WEIGHTS)
    tensors = SafeTensors(path / WEIGHTS)
    plain, modules = linears(base)
    if content.get("peft_type") in prompts.KINDS:
        return _open_prompts(content, tensors, plain, base, where)
    held = _by_place(content, tensors, modules, base, where)
    named = {ours: theirs for theirs, ours in modules.items() if ours in held}
    sides = smaller_sides(plain)
    method, ranks = config.read(content, str(path / CONFIG), named, sides)
    if not isinstance(method, LoRA) and "embedding" in named:
        raise UnsupportedModel(f"{where}: Graft's {method.kind} is for linears, not the embedding")
    over = [place for place, rank in ranks.items() if rank > sides[place]]
    if over and isinstance(method, LoHa):
        raise UnsupportedModel(
            f"{where}: rank {ranks[over[0]]} of {named[over[0]]} is over the smaller side of its "
            f"weight, {sides[over[0]]}; Graft's loha takes no such rank"
        )
    whole = tree.flatten(jax.eval_shape(method.attach, plain, jax.random.key(0)))
    attached = {name: whole[name] for name in whole if name not in tree.flatten(plain)}
    shapes = tree.unstack_shapes(attached)
    sources = _sources(method.kind, shapes, held, ranks, tensors, where)
    made: dict[str, np.ndarray] = {}
    adapter = Adapter(method, shapes, sources, tensors, made)
    for place in over:
        made |= _of_full_rank(adapter, place)
    return adapter


def _by_place(
    content: Mapping[str, Any],
    tensors: SafeTensors,
    modules: Mapping[str, str],
    base: Run,
    where: str,
) -> dict[str, dict[str, str]]:
    """The tensors' names by our places and PEFT's leaves."""
    held: dict[str, dict[str, str]] = {}
    given = set()
    for name in tensors.shapes:
        if name in PROJECTIONS.values():
            continue
        if name.endswith(_BASE):
            _check_unchanged(name, tensors, modules, base, where)
            continue
        module, leaf = _split(name)
        given.add(module)
        if content.get("peft_type") == "IA3":
            module = _scaled(module, content.get("feedforward_modules"), modules, base, where)
        if module not in modules:
            near = tree.nearest(module, modules, 1)
            raise UnsupportedModel(f"{where}: {name} is for no linear of this base ({near} is)")
        if leaf in held.setdefault(modules[module], {}):
            raise UnsupportedModel(f"{where}: {name} scales what another tensor scales too")
        held[modules[module]][leaf] = name
    targets.check(content, modules, given, where)
    return held


def _sources(
    kind: str,
    shapes: Mapping[str, jax.ShapeDtypeStruct],
    held: Mapping[str, dict[str, str]],
    ranks: Mapping[str, int],
    tensors: SafeTensors,
    where: str,
) -> dict[str, str]:
    """The tensor of each parameter but scales; all tensors must be one's, and of its shape."""
    sources = {}
    for name, shape in shapes.items():
        linear, _, rest = name.partition("/site/")
        leaf, leaves = rest.partition("/")[2], leaves_of(kind, linear)
        wanted = shape.shape
        if name.startswith("methods/"):
            found = PROJECTIONS[name.rpartition("/")[2]]
            source = found if found in tensors.shapes else None
            leaves = {leaf: f"{found}, which PEFT writes with save_projection,"}
        elif leaf not in leaves:
            continue  # the scale
        else:
            source = held[linear].pop(leaves[leaf], None)
            if leaf in ("a", "low/a") and linear in ranks:
                wanted = wanted[0], ranks[linear]
            elif leaf in ("b", "low/b") and linear in ranks:
                wanted = ranks[linear], wanted[1]
        if source is None:
            raise UnsupportedModel(f"{where}: {leaves[leaf]} of {linear} is missing")
        given = tensors.shapes[source]
        if not (math.prod(given) == wanted[0] if len(wanted) == 1 else given[::-1] == wanted):
            raise UnsupportedModel(f"{where}: {source} has shape {given}, not {wanted[::-1]}")
        sources[name] = source
    surplus = [name for left in held.values() for name in left.values()]
    if surplus:
        raise UnsupportedModel(f"{where}: {surplus[0]} is no part of a {kind}")
    return sources


def _of_full_rank(adapter: Adapter, place: str) -> dict[str, np.ndarray]:
    """A product of more ranks than the weight's smaller side, as one of so many, by name."""
    here = [name for name in adapter.sources if name.startswith(f"{place}/site/")]
    (a,), (b,) = ([name for name in here if name.endswith(end)] for end in ("/a", "/b"))
    product = np.asarray(adapter.read(a)) @ np.asarray(adapter.read(b))
    identity = np.eye(min(product.shape), dtype=np.float32)
    return {a: identity, b: product} if len(product) == len(identity) else {a: product, b: identity}


def _open_prompts(
    content: Mapping[str, Any], tensors: SafeTensors, plain: Transformer, base: Run, where: str
) -> Adapter:
    if list(tensors.shapes) != [prompts.NAME]:
        raise UnsupportedModel(f"{where} holds {list(tensors.shapes)}, not {prompts.NAME}")
    tensor = tensors.read(prompts.NAME, (slice(None), slice(None)))
    method, made = prompts.read(content, tensor, base.model, where)
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
            f"{base.path} is an adapter itself: --base takes whole models, such as its own "
            f"base {base.base.path}, or what graft adapters merge makes of it"
        )
    adapter = open_adapter(path, base)
    arrays = {name: adapter.read(name) for name in adapter.shapes}
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise UnsupportedModel(f"{path}: {name} holds numbers that are not finite")
    return runs.write(out, base, arrays, base.model, method=adapter.method, base=base)


def _check_unchanged(
    name: str, tensors: SafeTensors, modules: Mapping[str, str], base: Run, where: str
) -> None:
    """PEFT saves the base's table beside an adapter on it: it must be the base's own."""
    module = name.removeprefix(PREFIX).removesuffix(_BASE)
    if module not in modules:
        near = tree.nearest(module, modules, 1)
        raise UnsupportedModel(f"{where}: {name} is for no linear of this base ({near} is)")
    place = modules[module]
    table = place == "embedding" or (place == "head" and base.model.tie_embeddings)
    weight = "embedding/kernel" if table else f"{place}/kernel"
    own = np.asarray(base.read(weight)[weight], np.float32)
    own = own if table else own.T
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


def _split(name: str) -> tuple[str, str]:
    """A tensor's name -> its module's and its leaf's."""
    bare = name.removeprefix(PREFIX)
    module, found, leaf = bare.rpartition(".lora_")
    if found:
        return module, f"lora_{leaf}"
    module, _, leaf = bare.rpartition(".")
    return module, leaf
