"""Qwen 2 and 2.5: a Llama with biases on query, key and value (arXiv:2407.10671, 2412.15115)."""

from __future__ import annotations

from typing import Any

from research.interop.families.llama import common, write_common
from research.interop.family import Family
from research.interop.fields import Fields, UnsupportedModelError
from research.models.config import ModelConfig


def windows(fields: Fields) -> tuple[int, ...]:
    """Layers from `max_window_layers` on see a window, if any do."""
    first = fields.size("max_window_layers", 28)
    if not fields.flag("use_sliding_window"):
        # the window is unused then, whatever it is
        fields("sliding_window", None)
        if "sliding_attention" in fields("layer_types", []):
            raise UnsupportedModelError(
                f"{fields.where}: layer_types has windows, use_sliding_window is false"
            )
        return (0,)
    kinds = ["full_attention", "sliding_attention"]
    return fields.windows([kinds[i >= first] for i in range(fields.layers())])


def write_windows(config: ModelConfig) -> dict[str, Any]:
    each = [config.window(layer) for layer in range(config.layers)]
    first = next((i for i, window in enumerate(each) if window), config.layers)
    return {
        "use_sliding_window": any(each),
        "sliding_window": max(each) or None,
        "max_window_layers": first,
        "layer_types": ["sliding_attention" if w else "full_attention" for w in each],
    }


def read(fields: Fields) -> ModelConfig:
    fields.demand("hidden_act", "silu")
    return ModelConfig(
        **common(fields),
        biases=("query", "key", "value"),
        windows=windows(fields),
    )


def write(config: ModelConfig) -> dict[str, Any]:
    return write_common(config) | write_windows(config) | {"hidden_act": "silu"}


FAMILY = Family("qwen2", "Qwen2ForCausalLM", read, write)
