"""Exports adapters in the format of Hugging Face PEFT."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from research import sharding
from research.adapters.merging import Merged
from research.checkpoints import runs
from research.checkpoints.runs import Run
from research.interop import huggingface, score_heads, tensor_files
from research.interop.exporting import sidecar_files, whole_or_nothing
from research.interop.families import FAMILIES
from research.interop.family import family_for_model
from research.interop.fields import UnsupportedModelError
from research.interop.peft import config, joined, prompts, saved_weights, vllm
from research.interop.peft.joined import PREFIX, TargetModules, target_modules
from research.methods import LoHa, Method, Prefix, Prompt, Several, VeRA
from research.methods.oft import OFT
from research.text import chat_template

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# PEFT's names for a delta's leaves
_LEAVES: dict[str, dict[str, str]] = {
    "lora": {"a": "lora_A.weight", "b": "lora_B.weight"},
    "dora": {
        "low/a": "lora_A.weight",
        "low/b": "lora_B.weight",
        "magnitude": "lora_magnitude_vector",
    },
    "ia3": {"factor": "ia3_l"},
    "oft": {"skew": "oft_R.weight"},
    "vera": {"inner": "vera_lambda_d", "outer": "vera_lambda_b"},
    "loha": {
        "first_in": "hada_w1_b",
        "first_out": "hada_w1_a",
        "second_in": "hada_w2_b",
        "second_out": "hada_w2_a",
    },
}
# what VeRA's places share
PROJECTIONS = {"a": "base_model.vera_A", "b": "base_model.vera_B"}


@dataclasses.dataclass(frozen=True)
class AdapterExport:
    """What was written.

    Attributes:
      names: of the tensors.
      notes: what whoever serves it should know.
    """

    names: list[str]
    notes: tuple[str, ...]


def export_adapter(run: Run, out: str | Path, base: str, card: str = "") -> AdapterExport:
    """Writes a run's adapter as PEFT opens it on the base of transformers, with its tokenizer and
    template where they are not the base's.

    Args:
      base: what `PeftModel` should know as the base's name.
      card: the text of its README.md; what there is to say of serving comes behind.

    Raises:
      UnsupportedModelError: the method is none of PEFT's, or the base none of transformers'.
    """
    tensors, content = adapter_tensors(run)
    content |= {
        "base_model_name_or_path": base,
        "task_type": "SEQ_CLS" if run.method.head_outputs else "CAUSAL_LM",
        "inference_mode": True,
    }
    files, notes = own_files(run), [serving_note(run, tensors, content)]
    if chat_template.TEMPLATE in files:
        notes.append(f"It has a chat template of its own, {chat_template.TEMPLATE}")
    with whole_or_nothing(out, last=CONFIG) as folder:
        (folder / CONFIG).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        sizes = {name: value.shape for name, value in tensors.items()}
        names = list(tensor_files.write(folder, sizes, np.float32, 2**63, tensors.__getitem__))
        (folder / tensor_files.ONE).rename(folder / WEIGHTS)
        huggingface.write_sidecar_files(folder, files)
        if card:
            text = "\n".join([card.rstrip(), "", "## Serving", "", *(f"- {n}" for n in notes), ""])
            (folder / "README.md").write_text(text, encoding="utf-8")
    return AdapterExport(names, tuple(notes))


def serving_note(run: Run, tensors: Mapping[str, np.ndarray], content: Mapping[str, Any]) -> str:
    """Whether vLLM serves a run's adapter, and how.

    Args:
      tensors, content: as `adapter_tensors` gives them.
    """
    family, _ = family_for_model(run.model, FAMILIES, (run.origin or {}).get("family"))
    shapes = {name: value.shape for name, value in tensors.items()}
    return vllm.describe(content, shapes, family.kind, run.model.vocabulary)


def own_files(run: Run) -> dict[str, bytes]:
    """The tokenizer's files of a run that has another tokenizer or template than its base."""
    own, base = run.tokenizer, (run.base or run).tokenizer
    if (own.fingerprint(), own.templates, own.template_tokens) == (
        base.fingerprint(), base.templates, base.template_tokens,
    ):  # fmt: skip
        return {}
    files = sidecar_files(run)
    return {
        name: file
        for name, file in files.items()
        if name not in (huggingface.CONFIG, "generation_config.json")
    }


def adapter_tensors(run: Run) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """PEFT's tensors and config of a run's adapter.

    Raises:
      UnsupportedModelError: the method is none of PEFT's, or the base none of transformers'.
      ValueError: numbers that are not finite.
    """
    runs.check_parameters(run)
    attaching_method(run.method)
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


def attaching_method(method: Method) -> Method:
    """The one member of a method that PEFT has too; beside it may stand what trains the base.

    Raises:
      UnsupportedModelError: there is none, or there are several.
    """
    members = method.of if isinstance(method, Several) else (method,)
    attaching = [member for member in members if member.adapter and not member.head_outputs]
    kinds = (*_LEAVES, *prompts.KINDS.values())
    if len(attaching) != 1 or attaching[0].kind not in kinds:
        raise UnsupportedModelError(
            f"method {method.kind!r} leaves no adapter of PEFT's; {', '.join(kinds)} do, and one "
            "of them beside a partial"
        )
    if len(members) > 1 and attaching[0].kind in prompts.KINDS.values():
        raise UnsupportedModelError(f"PEFT saves no weights beside a {attaching[0].kind}")
    return attaching[0]


def tensors_of(
    run: Run, arrays: Mapping[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """PEFT's tensors and config of a run's method.

    Args:
      arrays: what the method attached, by single-layer name; others may be among them.

    Raises:
      UnsupportedModelError: no family of transformers has the base, or PEFT not this form.
    """
    method = attaching_method(run.method)
    head = score_heads.read_head(run)
    if isinstance(method, Prompt | Prefix):
        tensor, content = prompts.write(method, arrays, run.model)
        return {prompts.NAME: tensor}, content
    open_merged = functools.cache(functools.partial(Merged, run))

    def kernel(linear: str) -> np.ndarray:
        return open_merged()(f"{linear}/kernel")

    _, modules = target_modules(run)
    tensors, content = _write_modules(method, arrays, modules, kernel)
    targets = {modules.module_of(linear) for linear in _deltas(arrays, method.adapter)}
    saved, fields = saved_weights.write(run, targets, content["peft_type"])
    if head is not None:
        saved[PREFIX + score_heads.TENSOR] = head.weight
        fields["modules_to_save"] = [*fields.get("modules_to_save", ()), score_heads.MODULE]
    return tensors | saved, content | fields


def _write_modules(
    method: Method,
    arrays: Mapping[str, np.ndarray],
    modules: TargetModules,
    kernel: Callable[[str], np.ndarray],
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Tensors and config of a method that attaches to weights.

    Args:
      kernel: the base's weight of a linear to which nothing is attached.
    """
    if modules.conv1d and isinstance(method, LoHa | OFT):
        name = type(method).__name__
        raise UnsupportedModelError(
            f"PEFT's {name} takes no Conv1D, which GPT-2 is made of in transformers"
        )
    adapter: str = method.adapter
    deltas = _deltas(arrays, adapter)
    tensors: dict[str, np.ndarray] = {}
    scales: dict[str, tuple[int, float]] = {}
    names = list(dict.fromkeys(modules.module_of(linear) for linear in deltas))
    for name in names:
        linears = modules.linears[name]
        present = {linear: deltas.get(linear) for linear in linears}
        delta = joined.join(method.kind, present, modules.outputs, kernel)
        for leaf, their_leaf in leaves_of(method.kind, linears[0]).items():
            tensors[f"{PREFIX}{name}.{their_leaf}"] = _to_peft(their_leaf, delta[leaf])
        low = "low/" if method.kind == "dora" else ""
        if f"{low}scale" in delta:
            rank = delta[joined.INPUT_LEAVES[method.kind][0]].shape[1]
            scales[name] = rank, float(delta[f"{low}scale"]) * rank
    if isinstance(method, VeRA):
        for ours, projection in PROJECTIONS.items():
            tensors[projection] = arrays[f"methods/{adapter}/{ours}"].T
    content = config.write(method, scales)
    if modules.conv1d:
        content["fan_in_fan_out"] = True
    short_names = {name.rpartition(".")[2] for name in names}
    same_ends = {name for name in modules.linears if name.rpartition(".")[2] in short_names}
    targets = sorted(short_names if same_ends == set(names) else names)
    return tensors, content | {"target_modules": targets}


def _deltas(arrays: Mapping[str, np.ndarray], adapter: str) -> dict[str, dict[str, np.ndarray]]:
    """Each place's leaves, as a LoRA where the method is PiSSA."""
    ours = (n.partition("/site/")[0] for n in arrays if f"/site/{adapter}/" in n)
    places = sorted(set(ours), key=_layer_order)
    result = {}
    for place in places:
        site = f"{place}/site/{adapter}/"
        delta = {n.removeprefix(site): a for n, a in arrays.items() if n.startswith(site)}
        if "first_a" in delta:
            # PEFT's PiSSA changes the base; as a LoRA of twice the rank it need not
            delta["a"] = np.concatenate([delta["a"], -delta["first_a"]], axis=1)
            delta["b"] = np.concatenate([delta["b"], delta["first_b"]], axis=0)
        result[place] = delta
    return result


def leaves_of(kind: str, place: str) -> dict[str, str]:
    """PEFT's names for a delta's leaves."""
    if kind == "lora" and place == "embedding":
        return {"a": "lora_embedding_A", "b": "lora_embedding_B"}
    return _LEAVES[kind]


def _to_peft(their_leaf: str, value: np.ndarray) -> np.ndarray:
    """A leaf as PEFT stores it."""
    if their_leaf == "ia3_l":
        return value[:, None]
    if their_leaf == "oft_R.weight":
        return -value  # PEFT's rotation is (I - Q) (I + Q)^-1
    return value.T


def _layer_order(name: str) -> list[Any]:
    return [int(part) if part.isdigit() else part for part in name.split("/")]
