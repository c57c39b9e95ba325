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

from research import config as door
from research import runs, tree
from research.checkpoint import Checkpointer, library_versions
from research.interop import tensor_files
from research.interop.exporting import whole_or_nothing
from research.interop.families import FAMILIES
from research.interop.family import for_model, module_names
from research.interop.fields import UnsupportedModel
from research.interop.huggingface import read_json
from research.interop.importing import spread
from research.interop.tensor_files import SafeTensors
from research.methods import IA3, DoRA, LoRA, Method, places
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
}


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
    method = run.method
    if method.kind not in _LEAVES:
        known = ", ".join(_LEAVES)
        raise UnsupportedModel(f"method {method.kind!r} leaves no adapter; PEFT's are {known}")
    family, _ = for_model(run.model, FAMILIES, (run.imported or {}).get("family"))
    shapes = {
        name.removeprefix("model/"): shape
        for name, shape in run.saved.abstract().items()
        if name.startswith("model/") and "/site/" in name
    }
    arrays = {name: np.asarray(a) for name, a in run.parameters(spread(shapes)).items()}
    linears = sorted({name.partition("/site/")[0] for name in arrays}, key=_order)
    theirs = module_names(family, linears)
    tensors: dict[str, np.ndarray] = {}
    scales: dict[str, tuple[int, float]] = {}
    for linear in linears:
        site = f"{linear}/site/{method.adapter}/"  # type: ignore[attr-defined]
        held = {n.removeprefix(site): a for n, a in arrays.items() if n.startswith(site)}
        if (
            "first_a" in held
        ):  # PEFT's PiSSA changes the base; as a LoRA of twice the rank it need not
            held["a"] = np.concatenate([held["a"], -held["first_a"]], axis=1)
            held["b"] = np.concatenate([held["b"], held["first_b"]], axis=0)
        for leaf, name in _leaves(method.kind, linear).items():
            value = held[leaf]
            if not np.isfinite(value).all():
                raise ValueError(f"{linear}: {leaf} holds numbers that are not finite")
            value = value[:, None] if name == "ia3_l" else value.T
            tensors[f"{_PREFIX}{theirs[linear]}.{name}"] = value
        low = "low/" if method.kind == "dora" else ""
        if f"{low}scale" in held:
            rank = held[f"{low}a"].shape[1]
            scales[theirs[linear]] = rank, float(held[f"{low}scale"]) * rank
    short = {name.rpartition(".")[2] for name in theirs.values()}
    everywhere = len(theirs) == len(short) * run.model.layers
    content = _write_config(method, scales) | {
        "base_model_name_or_path": base,
        "target_modules": sorted(short) if everywhere else sorted(theirs.values()),
        "task_type": "CAUSAL_LM",
        "inference_mode": True,
    }
    with whole_or_nothing(out) as folder:
        (folder / CONFIG).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        sizes = {name: value.shape for name, value in tensors.items()}
        written = tensor_files.write(folder, sizes, np.float32, 2**63, tensors.__getitem__)
        names = list(written)
        (folder / tensor_files.ONE).rename(folder / WEIGHTS)
        if card:
            (folder / "README.md").write_text(card, encoding="utf-8")
    return names


@dataclasses.dataclass(frozen=True)
class Adapter:
    """An adapter of PEFT, checked against a base.

    Attributes:
      method: what it is in Graft.
      shapes: what the method attaches, by single-layer name.
      sources: the tensor of each, but for scales, which are the method's.
    """

    method: Method
    shapes: Mapping[str, jax.ShapeDtypeStruct]
    sources: Mapping[str, str]
    tensors: SafeTensors

    def read(self, name: str) -> jax.Array:
        """A parameter of the adapter."""
        shape = self.shapes[name].shape
        if name not in self.sources:
            assert isinstance(self.method, LoRA | DoRA)
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
    path = Path(path)
    if not (path / CONFIG).is_file():
        raise FileNotFoundError(f"{path} has no {CONFIG}: no adapter of PEFT")
    content, where = read_json(path / CONFIG), str(path / WEIGHTS)
    tensors = SafeTensors(path / WEIGHTS)
    plain, modules = _linears(base)
    held: dict[str, dict[str, str]] = {}
    for name in tensors.shapes:
        module, leaf = _split(name)
        if module not in modules:
            near = tree.nearest(module, modules, 1)
            raise UnsupportedModel(f"{where}: {name} is for no linear of this base ({near} is)")
        held.setdefault(modules[module], {})[leaf] = name
    named = {ours: theirs for theirs, ours in modules.items() if ours in held}
    method = _read_config(content, str(path / CONFIG), named)
    whole = tree.flatten(jax.eval_shape(method.attach, plain, jax.random.key(0)))
    attached = {name: whole[name] for name in whole if name not in tree.flatten(plain)}
    shapes, sources = tree.unstack_shapes(attached), {}
    for name, shape in shapes.items():
        linear, _, rest = name.partition("/site/")
        leaf, leaves = rest.partition("/")[2], _leaves(method.kind, linear)
        if leaf not in leaves:
            continue  # the scale
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


def import_adapter(path: str | Path, base: Run, out: str | Path) -> Path:
    """Writes an adapter of PEFT as a run that was tuned from `base`; returns the step's folder.

    Raises:
      FileExistsError: there is a model already.
      UnsupportedModel, FileNotFoundError: as `open_adapter`.
    """
    out, adapter = Path(out), open_adapter(path, base)
    if (out / "model").exists():
        raise FileExistsError(f"{out} holds a model already; choose another folder")
    metadata = {
        "experiment": None,
        "method": door.to_dict(adapter.method),
        "model": door.to_dict(base.model),
        "base": {"path": base.lasting, "fingerprint": base.fingerprint},
        "tokenizer": base.tokenizer.fingerprint(),
        "roles": base.tokenizer.roles,
        "imported": base.imported,
        "versions": library_versions(),
    }
    files = {**base.companions, runs.TOKENIZER: base.tokenizer.to_json().encode()}
    arrays = {f"model/{name}": adapter.read(name) for name in adapter.shapes}
    with Checkpointer(out / "model", keep_last=1, asynchronous=False) as shelf:
        shelf.save(0, arrays, metadata, files=files)
    return out / "model" / "0"


def _linears(base: Run) -> tuple[Transformer, dict[str, str]]:
    """The base in single layers, abstractly, and its linears by transformers' names."""
    singles = tuple(tree.stack_key(layer, 1) for layer in range(base.model.layers))
    plain = jax.eval_shape(lambda key: Transformer(key, base.model, singles), jax.random.key(0))
    family, _ = for_model(base.model, FAMILIES, (base.imported or {}).get("family"))
    together = {form for group in family.joined.values() for form in group}
    every = [name for name, _ in places(plain, *WEIGHTED)]
    names = [n for name in every for n in tree.layer_names(name)]
    names = [name for name in names if re.sub(r"/\d+/", "/*/", name) not in together]
    return plain, {theirs: ours for ours, theirs in module_names(family, names).items()}


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


def _write_config(method: Method, scales: Mapping[str, tuple[int, float]]) -> dict[str, Any]:
    """What `adapter_config.json` says of the method.

    Args:
      scales: rank and alpha of each module, by transformers' name; the commonest go in front.
    """
    if isinstance(method, IA3):
        return {"peft_type": "IA3", "feedforward_modules": []}
    rank = _commonest([r for r, _ in scales.values()])
    alpha = _commonest([a for _, a in scales.values()])
    return {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {name: r for name, (r, _) in scales.items() if r != rank},
        "alpha_pattern": {name: a for name, (_, a) in scales.items() if a != alpha},
        "lora_dropout": 0.0,
        "bias": "none",
        "use_dora": isinstance(method, DoRA),
    }


def _read_config(content: Mapping[str, Any], where: str, named: Mapping[str, str]) -> Method:
    """The method that an `adapter_config.json` describes.

    Args:
      named: the places that have tensors, and transformers' names for them.
    """
    for name in _REFUSED:
        if content.get(name) not in (None, False, "none", [], {}):
            raise UnsupportedModel(f"{where}: {name} is {content[name]!r}; Graft has no such thing")
    targets = _patterns(list(named))
    kind = content.get("peft_type")
    if kind == "IA3":
        if content.get("feedforward_modules"):
            raise UnsupportedModel(
                f"{where}: feedforward_modules scales inputs; Graft's IA3 scales outputs"
            )
        return IA3(targets)
    if kind != "LORA":
        raise UnsupportedModel(f"{where}: peft_type {kind!r}; Graft reads LORA and IA3")
    rank, alpha = content.get("r"), content.get("lora_alpha")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float) or alpha <= 0:
        raise UnsupportedModel(f"{where}: r is {rank!r} and lora_alpha {alpha!r}")
    each: dict[str, tuple[int, float]] = {}
    for ours, theirs in named.items():
        r = _by_pattern(content.get("rank_pattern"), theirs, rank, f"{where}: rank_pattern")
        a = _by_pattern(content.get("alpha_pattern"), theirs, alpha, f"{where}: alpha_pattern")
        each[ours] = int(r), float(a * r**0.5 if content.get("use_rslora") else a)
    # the commonest go without a pattern
    rank = _commonest([r for r, _ in each.values()])
    alpha = _commonest([a for _, a in each.values()])
    made = DoRA if content.get("use_dora") else LoRA
    ranks = _rules({ours: r for ours, (r, _) in each.items() if r != rank})
    alphas = _rules({ours: a for ours, (_, a) in each.items() if a != alpha})
    return made(targets, rank=rank, alpha=alpha, ranks=ranks, alphas=alphas)


def _by_pattern(patterns: Any, name: str, default: Any, where: str) -> Any:
    """PEFT's number for a module: that of the first key that matches the end of its name."""
    if not isinstance(patterns or {}, Mapping):
        raise UnsupportedModel(f"{where} is no object")
    for pattern, number in (patterns or {}).items():
        # only plain names: a hostile pattern could take forever to match
        if not re.fullmatch(r"[\w.\\^$*]*", pattern):
            raise UnsupportedModel(f"{where}: {pattern!r} is more than a module's name")
        plain = pattern.strip("^$").replace("\\.", ".")
        if name == plain or name.endswith(f".{plain}"):
            if not isinstance(number, int | float) or isinstance(number, bool) or number <= 0:
                raise UnsupportedModel(f"{where}: {pattern} is {number!r}")
            return number
    return default


def _commonest(values: list[Any]) -> Any:
    return max(sorted(set(values)), key=values.count)


def _rules(values: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """Patterns for places, by value."""
    found = []
    for value in sorted(set(values.values())):
        names = [name for name, given in values.items() if given == value]
        found += [(pattern, value) for pattern in _patterns(names)]
    return tuple(found)


_REFUSED = (
    "modules_to_save",
    "bias",
    "trainable_token_indices",
    "lora_bias",
    "alora_invocation_tokens",
    "exclude_modules",
)


def _patterns(names: list[str]) -> tuple[str, ...]:
    """The shortest patterns for these linears: one for each place, with its layers."""
    layers: dict[str, list[int]] = {}
    outside = []
    for name in names:
        if not name.startswith("layers/"):
            outside.append(re.escape(name))
            continue
        _, layer, place = name.split("/", 2)
        layers.setdefault(place, []).append(int(layer))
    return (
        *outside,
        *(
            rf"layers/({'|'.join(map(str, sorted(found)))})/{re.escape(place)}"
            for place, found in sorted(layers.items())
        ),
    )


def _order(name: str) -> list[Any]:
    return [int(part) if part.isdigit() else part for part in name.split("/")]
