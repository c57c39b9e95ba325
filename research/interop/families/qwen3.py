"""Qwen 3: a Llama with norms of every head's query and key (arXiv:2505.09388)."""

from __future__ import annotations

from typing import Any

from research.interop.families.llama import common, write_common
from research.interop.families.qwen2 import windows, write_windows
from research.interop.family import LLAMA_MODULES, Family
from research.interop.fields import Fields
from research.models.config import ModelConfig

HEAD_NORMS = {
    "layers/*/attention/query_norm": "model.layers.*.self_attn.q_norm",
    "layers/*/attention/key_norm": "model.layers.*.self_attn.k_norm",
}


def read(fields: Fields) -> ModelConfig:
    fields.demand("hidden_act", "silu")
    return ModelConfig(
        **common(fields, head=128),
        head_norms=True,
        biases=("query", "key", "value", "output") * fields.flag("attention_bias"),
        windows=windows(fields),
    )


def write(config: ModelConfig) -> dict[str, Any]:
    activation = {"hidden_act": "silu", "attention_bias": "query" in config.biases}
    return write_common(config) | write_windows(config) | activation


FAMILY = Family("qwen3", "Qwen3ForCausalLM", read, write, LLAMA_MODULES | HEAD_NORMS)
