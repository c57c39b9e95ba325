"""GPT-2: learned positions, LayerNorm, biases everywhere, no gate (Radford 2019)."""

from __future__ import annotations

from typing import Any

from research.interop.family import Family
from research.interop.fields import Fields
from research.models.config import ModelConfig

_HEADS = ("layers/*/attention/query", "layers/*/attention/key", "layers/*/attention/value")
MODULES = {
    "embedding": "transformer.wte",
    "positions": "transformer.wpe",
    "layers/*/attention_norm": "transformer.h.*.ln_1",
    **dict.fromkeys(_HEADS, "transformer.h.*.attn.c_attn"),
    "layers/*/attention/output": "transformer.h.*.attn.c_proj",
    "layers/*/mlp_norm": "transformer.h.*.ln_2",
    "layers/*/mlp/up": "transformer.h.*.mlp.c_fc",
    "layers/*/mlp/down": "transformer.h.*.mlp.c_proj",
    "final_norm": "transformer.ln_f",
    "head": "lm_head",
}


def read(fields: Fields) -> ModelConfig:
    fields.demand("activation_function", "gelu_new", "gelu_pytorch_tanh")
    fields.demand("scale_attn_weights", True)
    fields.demand("scale_attn_by_inverse_layer_idx", False)
    fields.demand("add_cross_attention", False)
    width, heads = fields.size("n_embd"), fields.size("n_head")
    return ModelConfig(
        vocabulary=fields.size("vocab_size"),
        width=width,
        layers=fields.layers("n_layer"),
        heads=heads,
        kv_heads=heads,
        mlp_width=fields.size("n_inner", 4 * width),
        learned_positions=fields.size("n_positions", 1024),
        norm="layer",
        norm_epsilon=fields.number("layer_norm_epsilon", 1e-5),
        biases=("query", "key", "value", "output", "up", "down"),
        activation="gelu_tanh",
        gated=False,
        tie_embeddings=fields.flag("tie_word_embeddings", True),
    )


def write(config: ModelConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.vocabulary,
        "n_embd": config.width,
        "n_layer": config.layers,
        "n_head": config.heads,
        "n_inner": config.mlp_width,
        "n_positions": config.learned_positions,
        "layer_norm_epsilon": config.norm_epsilon,
        "activation_function": "gelu_new",
        "tie_word_embeddings": config.tie_embeddings,
    }


FAMILY = Family(
    "gpt2",
    "GPT2LMHeadModel",
    read,
    write,
    MODULES,
    joined={"transformer.h.*.attn.c_attn": _HEADS},
    transposed=False,
    ignored=(r"transformer\.h\.\d+\.attn\.(masked_)?bias",),
)
