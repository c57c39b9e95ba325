"""Whether vLLM's loader of LoRA adapters takes an exported one, by its published rules.

The rules are those of vllm/lora (peft_helper, lora_model, model_manager) and of vllm/config/lora at
the end of 2026: of an adapter's config it reads `r`, `lora_alpha`, `use_rslora`, `use_dora`, `bias`
and `modules_to_save`; one scale holds for all modules; names decide where tensors go.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# what `--max-lora-rank` may be
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
# of a model with an adapter on its head
LARGEST_VOCABULARY = 258_048
# families of which it serves adapters on embedding and head, and none at all
WITH_ENDS = ("llama", "mistral", "phi3")
WITHOUT_LORA = ("gpt2",)
_TENSOR = re.compile(r"base_model\.model\.(?P<module>.+)\.(lora_[AB]\.weight|lora_embedding_[AB])")
_ENDS = ("embed_tokens", "lm_head")
INSTEAD = "export it merged (`--format hf`) and serve that"


def problems(
    content: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    family: str,
    vocabulary: int,
) -> list[str]:
    """Why vLLM does not serve an adapter, or serves another; nothing where it serves it.

    Args:
      content: its `adapter_config.json`.
      shapes: those of its tensors.
      family: the base's `model_type`.
      vocabulary: the base's number of tokens.
    """
    kind = content.get("peft_type")
    if kind != "LORA":
        return [f"it serves LoRA alone, and this is {kind}"]
    reasons = [f"it serves no adapters of {family}"] * (family in WITHOUT_LORA)
    if content.get("use_dora"):
        reasons.append("it serves no DoRA")
    if content.get("modules_to_save"):
        names = ", ".join(content["modules_to_save"][:3])
        reasons.append(f"it takes no modules_to_save ({names})")
    if content.get("trainable_token_indices"):
        reasons.append("it takes no trainable_token_indices")
    if content.get("bias", "none") != "none":
        reasons.append("it takes no biases")
    others = [name for name in shapes if not _TENSOR.fullmatch(name)]
    if others and not content.get("use_dora"):
        reasons.append(f"it passes over weights of the base such as {others[0]}")
    ends = sorted({end for end in _ENDS for name in shapes if f".{end}.lora" in name})
    if ends and family not in WITH_ENDS and family not in WITHOUT_LORA:
        reasons.append(f"it serves no adapter on {ends[0]} of {family}")
    if "lm_head" in ends and family in WITH_ENDS and vocabulary > LARGEST_VOCABULARY:
        reasons.append(f"its heads with adapters have {LARGEST_VOCABULARY:,} tokens at most")
    if (rank := largest_rank(content, shapes)) > RANKS[-1]:
        reasons.append(f"its largest rank is {RANKS[-1]}, and this has {rank}")
    if len(_scales(content)) > 1:
        reasons.append(
            "it reads neither rank_pattern nor alpha_pattern, and these modules differ in "
            "alpha / rank"
        )
    return reasons


def largest_rank(content: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> int:
    """The rank that the server must allow."""
    ranks = [shape[0] for name, shape in shapes.items() if "lora_A" in name or "ding_A" in name]
    return max([int(content.get("r") or 0), *ranks])


def max_lora_rank(rank: int) -> int:
    """The least `--max-lora-rank` that allows a rank."""
    return next((allowed for allowed in RANKS if rank <= allowed), RANKS[-1])


def _scales(content: Mapping[str, Any]) -> set[float]:
    """alpha / rank of every module, by PEFT's reading."""
    ranks, alphas = content.get("rank_pattern") or {}, content.get("alpha_pattern") or {}
    rank, alpha = content["r"], content["lora_alpha"]
    names = {*ranks, *alphas}
    each = {alphas.get(name, alpha) / ranks.get(name, rank) for name in names}
    return {round(scale, 6) for scale in {*each, alpha / rank}}


def describe(
    content: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    family: str,
    vocabulary: int,
) -> str:
    """A line for the console and the card: the options that it needs, or why it does not."""
    reasons = problems(content, shapes, family, vocabulary)
    if reasons:
        return f"vLLM does not serve this adapter: {'; '.join(reasons)}. Instead, {INSTEAD}"
    rank = max_lora_rank(largest_rank(content, shapes))
    return f"vLLM serves this adapter, with --enable-lora --max-lora-rank {rank}"
