"""Gemma 3, text: head norms, five windows to a full layer, two rotary bases (arXiv:2503.19786)."""

from __future__ import annotations

from typing import Any

from research.interop.families.gemma2 import MODULES, gemma, write_gemma
from research.interop.families.qwen3 import HEAD_NORMS
from research.interop.family import Family
from research.interop.fields import Fields, UnsupportedModelError
from research.models.config import ModelConfig


def read(fields: Fields) -> ModelConfig:
    layers = fields.layers()
    cycle = fields.size("sliding_window_pattern", 6)
    _refuse_passed_over(fields, cycle)
    kinds = ["sliding_attention", "full_attention"]
    layer_types = [kinds[(layer + 1) % max(1, cycle) == 0] for layer in range(layers)]
    defaults = {"rope_theta": 1e6, "rope_local_base_freq": 1e4, "sliding_window": 4096}
    fields = fields.with_defaults(defaults)
    local = fields.number("rope_local_base_freq")
    nested = fields("rope_parameters", None)
    if nested and "sliding_attention" in nested:
        local, scaling = fields.rotary("sliding_attention", "rope_local_base_freq")
        if scaling:
            raise UnsupportedModelError(f"{fields.where}: scaled rotary positions in windows")
    return ModelConfig(
        **gemma(fields, "full_attention"),
        rotary_base_in_windows=local,
        head_norms=True,
        windows=fields.windows(layer_types),
    )


def _refuse_passed_over(fields: Fields, cycle: int) -> None:
    """Refuses what a config says and transformers passes over, for this family alone."""
    saved_cycle = fields("_sliding_window_pattern", cycle)
    if saved_cycle != cycle and fields("layer_types", None) is None:
        raise UnsupportedModelError(
            f"{fields.where}: _sliding_window_pattern is {saved_cycle!r}, which transformers does "
            "not read: write layer_types"
        )
    fields.demand("attn_logit_softcapping", None)
    rotary = fields("rope_parameters", None) or {}
    if not isinstance(rotary, dict):
        raise UnsupportedModelError(f"{fields.where}: rope_parameters is no object: {rotary!r:.60}")
    if flat := rotary.keys() - {"full_attention", "sliding_attention"}:
        raise UnsupportedModelError(
            f"{fields.where}: rope_parameters has {', '.join(sorted(flat))} beside the kinds of "
            "layers, which transformers does not read: write them into full_attention"
        )
    scaling = fields("rope_scaling", None) or {}
    if isinstance(scaling, dict) and scaling.get("type") and not scaling.get("rope_type"):
        raise UnsupportedModelError(
            f"{fields.where}: rope_scaling has type, which transformers 5 does not read: write "
            "rope_type"
        )


def write(config: ModelConfig) -> dict[str, Any]:
    return write_gemma(config) | {"rope_local_base_freq": config.rotary_base_in_windows}


FAMILY = Family(
    "gemma3_text",
    "Gemma3ForCausalLM",
    read,
    write,
    MODULES | HEAD_NORMS,
    classifier="Gemma3TextForSequenceClassification",
)
