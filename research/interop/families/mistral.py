"""Mistral: a Llama that may see a window only (Jiang 2023, arXiv:2310.06825)."""

from __future__ import annotations

from typing import Any

from research.interop.families.llama import common, write_common
from research.interop.family import Family
from research.interop.fields import Fields
from research.models.config import ModelConfig


def read(fields: Fields) -> ModelConfig:
    fields.demand("hidden_act", "silu")
    return ModelConfig(
        **common(fields, kv_heads=8),
        # null is no window, and only absence transformers' default
        windows=(fields.size("sliding_window", 0 if "sliding_window" in fields.content else 4096),),
    )


def write(config: ModelConfig) -> dict[str, Any]:
    return write_common(config) | {
        "hidden_act": "silu",
        "sliding_window": config.windows[0] or None,
    }


FAMILY = Family("mistral", "MistralForCausalLM", read, write)
