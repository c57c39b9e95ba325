"""llama.cpp's architectures: which family each is, and its names and order of tensors."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

from research.interop.family import Family, Source
from research.models.config import ModelConfig

# Graft's modules -> GGUF's, alike for all families.
MODULES = {
    "embedding": "token_embd",
    "positions": "position_embd",
    "layers/*/attention_norm": "blk.*.attn_norm",
    "layers/*/attention/query": "blk.*.attn_q",
    "layers/*/attention/key": "blk.*.attn_k",
    "layers/*/attention/value": "blk.*.attn_v",
    "layers/*/attention/output": "blk.*.attn_output",
    "layers/*/attention/query_norm": "blk.*.attn_q_norm",
    "layers/*/attention/key_norm": "blk.*.attn_k_norm",
    "layers/*/attention_output/norm": "blk.*.post_attention_norm",
    "layers/*/mlp_norm": "blk.*.ffn_norm",
    "layers/*/mlp/gate": "blk.*.ffn_gate",
    "layers/*/mlp/up": "blk.*.ffn_up",
    "layers/*/mlp/down": "blk.*.ffn_down",
    "layers/*/mlp_output/norm": "blk.*.post_ffw_norm",
    "final_norm": "output_norm",
    "head": "output",
}
# GGUF's modules that hold several of Graft's side by side
JOINED = {
    ("layers/*/attention/query", "layers/*/attention/key", "layers/*/attention/value"): (
        "blk.*.attn_qkv"
    ),
    ("layers/*/mlp/gate", "layers/*/mlp/up"): "blk.*.ffn_up",
}
# GGUF's architectures -> families
ARCHITECTURES = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",
    "gpt2": "gpt2",
    "phi3": "phi3",
}
FREQUENCIES = "rope_freqs.weight"
# those of which llama.cpp computes windows: its others see everything, whatever a file says
WINDOWED = ("gemma2", "gemma3")
# layers of the largest Gemmas, by which llama.cpp knows that they scale scores by the width
LARGEST = {"gemma2": 46, "gemma3": 62}


def name_of_family(family: str) -> str:
    """llama.cpp's architecture for a family of transformers'."""
    names = {family: name for name, family in ARCHITECTURES.items()} | {"mistral": "llama"}
    return names[family]


def tensor_names(family: Family) -> Family:
    """The family with GGUF's names for its tensors; llama.cpp joins what transformers joins."""
    joined = {JOINED[parts]: parts for parts in family.joined.values()}
    # the one architecture whose rotary frequencies llama.cpp stretches by a tensor
    has_frequencies = name_of_family(family.kind) == "llama"
    return dataclasses.replace(
        family,
        modules=MODULES | {ours: theirs for theirs, parts in joined.items() for ours in parts},
        joined=joined,
        transposed=True,
        ignored=(re.escape(FREQUENCIES),) if has_frequencies else (),
    )


def rotary_heads(kind: str, config: ModelConfig, places: Mapping[str, Source]) -> dict[str, int]:
    """Tensors whose heads have their halves interleaved, with their number of heads: Llama's
    queries and keys."""
    if kind != "llama":
        return {}
    heads = {"query": config.heads, "key": config.kv_heads}
    split_names = [(name.split("/"), source.name) for name, source in places.items()]
    return {
        tensor: heads[parts[3]]
        for parts, tensor in split_names
        if parts[2:3] == ["attention"] and parts[3] in heads
    }
