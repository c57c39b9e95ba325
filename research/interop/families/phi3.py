"""Phi-3: a Llama whose query, key and value are one matrix, gate and up another (2404.14219)."""

from __future__ import annotations

from typing import Any

from research.interop.families.llama import common, write_common
from research.interop.family import LLAMA_MODULES, Family
from research.interop.fields import Fields, UnsupportedModelError
from research.models.config import ModelConfig

JOINED = {
    "model.layers.*.self_attn.qkv_proj": (
        "layers/*/attention/query",
        "layers/*/attention/key",
        "layers/*/attention/value",
    ),
    "model.layers.*.mlp.gate_up_proj": ("layers/*/mlp/gate", "layers/*/mlp/up"),
}


def read(fields: Fields) -> ModelConfig:
    fields.demand("hidden_act", "silu")
    fields.demand("partial_rotary_factor", 1.0)  # Phi-4-mini rotates a part of each head
    shape = common(fields) | {"norm_epsilon": fields.number("rms_norm_eps", 1e-5)}
    if shape["rotary_scaling"] is not None:
        raise UnsupportedModelError(
            f"{fields.where}: Phi-3 has no such rope scaling in transformers"
        )
    return ModelConfig(**shape, windows=(fields.size("sliding_window", 0),))


def write(config: ModelConfig) -> dict[str, Any]:
    return write_common(config) | {
        "hidden_act": "silu",
        "sliding_window": config.windows[0] or None,
    }


MODULES = LLAMA_MODULES | {ours: theirs for theirs, parts in JOINED.items() for ours in parts}
FAMILY = Family("phi3", "Phi3ForCausalLM", read, write, MODULES, joined=JOINED)
