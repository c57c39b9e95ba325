"""Llama 1 to 3 and what is built like it, SmolLM2 among them (Touvron 2023, arXiv:2307.09288)."""

from __future__ import annotations

from typing import Any

from research.interop.family import Family
from research.interop.fields import Fields, write_rotary
from research.models.config import ModelConfig


def common(
    fields: Fields,
    *,
    head: int | None = None,
    tie_embeddings: bool = False,
    layers: str | None = None,
    kv_heads: int | None = None,
) -> dict[str, Any]:
    """The fields that all relatives of Llama have alike.

    Args:
      head: the default of the head size; None for the width's share.
      tie_embeddings: the default of tying.
      kv_heads: the default of their number; None for as many as heads.
      layers: whose rotary frequencies to take, where kinds of layers have their own.
    """
    width, heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    base, scaling = fields.rotary(layers)
    return {
        "vocabulary": fields.size("vocab_size"),
        "width": width,
        "layers": fields.layers(),
        "heads": heads,
        "kv_heads": fields.size("num_key_value_heads", kv_heads or heads),
        "mlp_width": fields.size("intermediate_size"),
        "head_size": head_size(fields, head),
        "norm_epsilon": fields.number("rms_norm_eps", 1e-6),
        "tie_embeddings": fields.flag("tie_word_embeddings", tie_embeddings),
        "rotary_base": base,
        "rotary_scaling": scaling,
    }


def head_size(fields: Fields, default: int | None = None) -> int:
    """`ModelConfig.head_size`: 0 where it is the width's share."""
    share = fields.size("hidden_size") // max(1, fields.size("num_attention_heads"))
    size = fields.size("head_dim", default or share)
    return 0 if size == share else size


def write_common(config: ModelConfig) -> dict[str, Any]:
    """Those fields of a `config.json`."""
    return {
        "vocab_size": config.vocabulary,
        "hidden_size": config.width,
        "intermediate_size": config.mlp_width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "rms_norm_eps": config.norm_epsilon,
        "tie_word_embeddings": config.tie_embeddings,
        "rope_theta": config.rotary_base,
        "rope_scaling": write_rotary(config.rotary_scaling),
    }


def read(fields: Fields) -> ModelConfig:
    fields.demand("hidden_act", "silu")
    attention, mlp = fields.flag("attention_bias"), fields.flag("mlp_bias")
    return ModelConfig(
        **common(fields),
        biases=("query", "key", "value", "output") * attention + ("gate", "up", "down") * mlp,
    )


def write(config: ModelConfig) -> dict[str, Any]:
    return write_common(config) | {
        "hidden_act": "silu",
        "attention_bias": "query" in config.biases,
        "mlp_bias": "up" in config.biases,
    }


FAMILY = Family("llama", "LlamaForCausalLM", read, write)
