"""Gemma 2: norms on both sides, soft caps, alternating windows (arXiv:2408.00118)."""

from __future__ import annotations

import math
from typing import Any

from research.interop.families.llama import common, write_common
from research.interop.family import LLAMA_MODULES, Family
from research.interop.fields import Fields
from research.models.config import ModelConfig

MODULES = LLAMA_MODULES | {
    "layers/*/attention_output/norm": "model.layers.*.post_attention_layernorm",
    "layers/*/mlp_norm": "model.layers.*.pre_feedforward_layernorm",
    "layers/*/mlp_output/norm": "model.layers.*.post_feedforward_layernorm",
}


def gemma(
    fields: Fields,
    layers: str | None = None,
    caps: tuple[float | None, float | None] = (None, None),
) -> dict[str, Any]:
    """The fields that Gemma 2 and 3 have in common beyond a Llama.

    Args:
      layers: as in `common`.
      caps: the defaults of scores' and logits'.
    """
    fields.demand("hidden_activation", "gelu_pytorch_tanh")
    fields.demand("attention_bias", False)
    fields.demand("use_bidirectional_attention", False)
    return common(fields, head=256, tie_embeddings=True, layers=layers) | {
        "norm_offset": 1.0,
        "post_norms": True,
        "activation": "gelu_tanh",
        "score_size": fields.size("query_pre_attn_scalar", 256),
        "embedding_scale": math.sqrt(fields.size("hidden_size")),
        "score_cap": fields.optional("attn_logit_softcapping", caps[0]) or 0.0,
        "logit_cap": fields.optional("final_logit_softcapping", caps[1]) or 0.0,
    }


def write_gemma(config: ModelConfig) -> dict[str, Any]:
    windows = [config.window(layer) for layer in range(config.layers)]
    return write_common(config) | {
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": config.score_size or config.head_dim,
        "sliding_window": max(windows) or None,
        "layer_types": ["sliding_attention" if w else "full_attention" for w in windows],
        "attn_logit_softcapping": config.score_cap or None,
        "final_logit_softcapping": config.logit_cap or None,
    }


def read(fields: Fields) -> ModelConfig:
    layers = fields.layers()
    kinds = ["sliding_attention", "full_attention"]
    return ModelConfig(
        **gemma(fields, caps=(50.0, 30.0)),
        windows=fields.windows([kinds[layer % 2] for layer in range(layers)]),
    )


FAMILY = Family("gemma2", "Gemma2ForCausalLM", read, write_gemma, MODULES)
