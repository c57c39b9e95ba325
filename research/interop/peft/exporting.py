"""Adapters in the format of Hugging Face PEFT: its names for ours, and writing them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from research import sharding, tree
from research.checkpoints import runs
from research.checkpoints.runs import Run
from research.interop import tensor_files
from research.interop.exporting import whole_or_nothing
from research.interop.families import FAMILIES
from research.interop.family import Family, for_model, module_names
from research.interop.fields import UnsupportedModel
from research.interop.peft import config, prompts
from research.methods import (
    Full,
    Method,
    Prefix,
    Prompt,
    VeRA,
    abstract,
    places,
    single_layers,
)
from research.methods.attach import WEIGHTED
from research.models.transformer import Transformer

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
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
# what VeRA's places share
PROJECTIONS = {"a": "base_model.vera_A", "b": "base_model.vera_B"}


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
    if method.kind not in (*_LEAVES, *prompts.KINDS.values()):
        known = ", ".join((*_LEAVES, *prompts.KINDS.values()))
        raise UnsupportedModel(f"method {method.kind!r} leaves no adapter of PEFT's; {known} do")
    shapes = {
        name.removeprefix("model/"): shape
        for name, shape in run.checkpoint.abstract().items()
        if name.startswith("model/methods/") or (name.startswith("model/") and "/site/" in name)
    }
    arrays = {
        name: np.asarray(a) for name, a in run.restore(sharding.shard_any_axis(shapes)).items()
    }
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
        tensor, content = prompts.write(run.method, arrays, run.model)
        return {prompts.NAME: tensor}, content
    family, _ = for_model(run.model, FAMILIES, (run.imported or {}).get("family"))
    return _write_places(run.method, arrays, family, set(linears(run)[1]))


def _write_places(
    method: Method, arrays: Mapping[str, np.ndarray], family: Family, modules: set[str]
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Tensors and config of a method that attaches to weights; `modules` are all of the base's."""
    adapter: str = method.adapter
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
        for leaf, name in leaves_of(method.kind, place).items():
            value = held[leaf]
            value = value[:, None] if name == "ia3_l" else value.T
            tensors[f"{PREFIX}{theirs[place]}.{name}"] = value
        low = "low/" if method.kind == "dora" else ""
        if f"{low}scale" in held:
            rank = held[_RANKED[method.kind]].shape[1]
            scales[theirs[place]] = rank, float(held[f"{low}scale"]) * rank
    if isinstance(method, VeRA):
        for ours, name in PROJECTIONS.items():
            tensors[name] = arrays[f"methods/{adapter}/{ours}"].T
    short = {name.rpartition(".")[2] for name in theirs.values()}
    replicated = {name for name in modules if name.rpartition(".")[2] in short}
    targets = sorted(short if replicated == set(theirs.values()) else theirs.values())
    return tensors, config.write(method, scales) | {"target_modules": targets}


def linears(base: Run) -> tuple[Transformer, dict[str, str]]:
    """The base in single layers, abstractly, and its linears by transformers' names."""
    plain = abstract(base.model, Full(), single_layers(base.model))
    family, _ = for_model(base.model, FAMILIES, (base.imported or {}).get("family"))
    together = {form for group in family.joined.values() for form in group}
    every = [name for name, _ in places(plain, *WEIGHTED)]
    names = [n for name in every for n in tree.layer_names(name)]
    names = [name for name in names if re.sub(r"/\d+/", "/*/", name) not in together]
    return plain, {theirs: ours for ours, theirs in module_names(family, names).items()}


def leaves_of(kind: str, place: str) -> dict[str, str]:
    """A delta's leaves -> PEFT's names."""
    if kind == "lora" and place == "embedding":
        return {"a": "lora_embedding_A", "b": "lora_embedding_B"}
    return _LEAVES[kind]


def _order(name: str) -> list[Any]:
    return [int(part) if part.isdigit() else part for part in name.split("/")]
