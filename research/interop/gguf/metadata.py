"""Keys of a GGUF file: each is read, checked, or known to change nothing; any other is refused.

What a key means is as llama.cpp computes it, defaults of absent keys included.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from research.interop.fields import UnsupportedModelError
from research.interop.gguf import tokenizer
from research.interop.gguf.architectures import ARCHITECTURES, FREQUENCIES, LARGEST, WINDOWED
from research.interop.gguf.tensors import PLAIN_TYPES, GGUFTensors
from research.models import rotary
from research.models.config import ModelConfig, RotaryScaling

# read by `config_content`, or compared with the shape by `check_shape`
_KEYS = {
    *("vocab_size", "context_length", "embedding_length", "block_count", "feed_forward_length"),
    *("attention.head_count", "attention.head_count_kv"),
    *("attention.key_length", "attention.value_length"),
    *("attention.layer_norm_epsilon", "attention.layer_norm_rms_epsilon"),
    *("attention.sliding_window", "attention.sliding_window_pattern"),
    *("rope.dimension_count", "rope.freq_base"),
    *("rope.scaling.type", "rope.scaling.factor", "rope.scale_linear"),
}
_KEYS_BY_KIND = {
    "gemma2": {"attn_logit_softcapping", "final_logit_softcapping"},
    # llama.cpp caps no scores there
    "gemma3": {"final_logit_softcapping", "rope.freq_base_swa"}
    | {"rope.dimension_count_swa", "attention.key_length_swa", "attention.value_length_swa"},
}
# the values that change nothing; 0 mostly stands for "off"
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "attention.scale": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "attention.clamp_kqv": (0.0,),
    "attention.temperature_scale": (0.0,),
    "attention.temperature_length": (0,),
    "attention.shared_kv_layers": (0,),
    "rope.scaling.attn_factor": (1.0,),
    "rope.scaling.alpha": (0.0, 1.0),
    "rope.scaling.yarn_ext_factor": (0.0, -1.0),
    "rope.scaling.yarn_attn_factor": (1.0,),
    "rope.scaling.yarn_log_multiplier": (0.0,),
    "attn_logit_softcapping": (0.0,),
    "final_logit_softcapping": (0.0,),
    "router_logit_softcapping": (0.0,),
    "logit_scale": (0.0, 1.0),
    "residual_scale": (0.0, 1.0),
    "embedding_scale": (0.0, 1.0),
    "use_parallel_residual": (False,),
    "swin_norm": (False,),
    "pooling_type": (0,),
    "expert_count": (0,),
    "expert_used_count": (0,),
    "expert_shared_count": (0,),
    "leading_dense_block_count": (0,),
    "nextn_predict_layers": (0,),
    "n_deepstack_layers": (0,),
}
_REASONS = {
    "attention.causal": "tokens see those after them, as in models for embedding or diffusion",
    "expert_count": "a mixture of experts, and Graft has none",
    "pooling_type": "a model for embedding texts",
}
# of yarn and LongRoPE, which `rope.scaling.type` names; how tensors lie is read off their names
_WITHOUT_EFFECT = {
    *("rope.scaling.original_context_length", "rope.scaling.finetuned"),
    *("rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow"),
    "tensor_data_layout",
}


def check_keys(kind: str, metadata: Mapping[str, Any], tensors: GGUFTensors, where: str) -> None:
    """Refuses keys of the architecture that are not known, or say what Graft does not compute.

    Args:
      kind: `general.architecture`.

    Raises:
      UnsupportedModelError: naming the key.
    """
    purpose = metadata.get("general.type", "model")
    if purpose != "model":
        raise UnsupportedModelError(
            f"{where}: general.type is {purpose!r}, which is no model"
            + ("; give its base with --base RUN" if purpose == "adapter" else "")
        )
    version = metadata.get("general.quantization_version", 2)
    if version != 2 and set(tensors.dtypes.values()) - set(PLAIN_TYPES):
        raise UnsupportedModelError(
            f"{where}: general.quantization_version is {version!r}; Graft reads blocks of version 2"
        )
    readable = _KEYS | _KEYS_BY_KIND.get(kind, set())
    for name, value in metadata.items():
        key = name.removeprefix(f"{kind}.")
        if key == name or key in readable or key in _WITHOUT_EFFECT:
            continue
        if key not in _NEUTRAL:
            raise UnsupportedModelError(
                f"{where}: {name} is no key that Graft knows for {kind}; what it changes "
                f"would be lost (it is {value!r:.60})"
            )
        if value not in _NEUTRAL[key]:
            reason = _REASONS.get(key, f"Graft computes {_NEUTRAL[key][-1]!r}")
            raise UnsupportedModelError(f"{where}: {name} is {_rounded(value)!r:.60}: {reason}")


def config_content(
    kind: str, metadata: Mapping[str, Any], tensors: GGUFTensors, where: str
) -> dict[str, Any]:
    """The metadata as fields of transformers' `config.json`.

    Raises:
      UnsupportedModelError: a key that Graft does not compute, or a missing one.
    """

    def get(key: str, default: Any = None) -> Any:
        return _rounded(metadata.get(f"{kind}.{key}", default))

    epsilon = "layer_norm_epsilon" if kind == "gpt2" else "layer_norm_rms_epsilon"
    if get(f"attention.{epsilon}") is None:
        raise UnsupportedModelError(f"{where}: {kind}.attention.{epsilon} is missing")
    table = tensors.shapes.get("token_embd.weight", (0, 0))
    content = tokenizer.token_ids(metadata) | {
        "vocab_size": table[0],
        "tie_word_embeddings": "output.weight" not in tensors.shapes,
        "model_type": ARCHITECTURES[kind],
    }
    if kind == "gpt2":
        return content | {
            "n_embd": get("embedding_length"),
            "n_layer": get("block_count"),
            "n_head": get("attention.head_count"),
            "n_inner": get("feed_forward_length"),
            "n_positions": get("context_length"),
            "layer_norm_epsilon": get(f"attention.{epsilon}"),
        }
    heads, width = get("attention.head_count"), get("embedding_length")
    content |= {
        "hidden_size": width,
        "intermediate_size": get("feed_forward_length"),
        "num_hidden_layers": get("block_count"),
        "num_attention_heads": heads,
        # defaults are llama.cpp's, which are not always the family's
        "num_key_value_heads": get("attention.head_count_kv", heads),
        "head_dim": get("attention.key_length") or _share(width, heads),
        "rms_norm_eps": get(f"attention.{epsilon}"),
        "rope_theta": get("rope.freq_base", 10_000.0),
        "max_position_embeddings": get("context_length"),
        "sliding_window": get("attention.sliding_window") if kind in WINDOWED else None,
        "rope_scaling": _linear_scaling(
            get("rope.scaling.type", "linear"),
            get("rope.scaling.factor", get("rope.scale_linear", 0.0)),
            where,
        ),
    }
    if kind == "llama":
        content["attention_bias"] = "blk.0.attn_q.bias" in tensors.shapes
        content["mlp_bias"] = "blk.0.ffn_up.bias" in tensors.shapes
    if kind.startswith("gemma"):
        content |= _gemma(kind, content)
        for name in ("attn_logit_softcapping", "final_logit_softcapping"):
            if get(name) is not None:  # absent ones are llama.cpp's defaults, transformers' own
                content[name] = get(name) or None
    if kind == "gemma2":
        for name in (
            "attention.sliding_window",
            "attn_logit_softcapping",
            "final_logit_softcapping",
        ):
            if get(name) == 0:
                raise UnsupportedModelError(
                    f"{where}: gemma2.{name} is 0, of which llama.cpp computes no numbers; without "
                    "the key it takes its own"
                )
    if kind == "gemma3":
        content["rope_local_base_freq"] = get("rope.freq_base_swa", 10_000.0)
    return content


def _rounded(value: Any) -> Any:
    """A number as it was before it was stored in single precision: 1e-5, not 9.99999975e-06."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _share(width: Any, heads: Any) -> Any:
    return width // heads if isinstance(width, int) and isinstance(heads, int) and heads else None


def _linear_scaling(kind: Any, factor: Any, where: str) -> dict[str, Any] | None:
    """`rope_scaling` of a config. A factor without a type is linear, and 0 is none."""
    if kind not in ("none", "linear"):
        raise UnsupportedModelError(
            f"{where}: rope.scaling.type is {kind!r}; Graft computes none, linear and Llama 3's"
        )
    if kind == "none" or factor in (0.0, 1.0):
        return None
    return {"rope_type": "linear", "factor": factor}


def _gemma(kind: str, content: Mapping[str, Any]) -> dict[str, Any]:
    """What llama.cpp fixes for the Gemmas: the scale of scores, which the largest of each takes
    from the width, and without a window in Gemma 3 the full attention of every layer."""
    size = content["head_dim"]
    if LARGEST[kind] == content["num_hidden_layers"]:
        size = _share(content["hidden_size"], content["num_attention_heads"])
    fixed = {"query_pre_attn_scalar": size}
    if not content["sliding_window"]:
        layers = content["num_hidden_layers"]
        if kind == "gemma2":
            return fixed | {"sliding_window": 4096}
        if isinstance(layers, int) and layers < 10_000:
            fixed["layer_types"] = ["full_attention"] * layers
    return fixed


def check_shape(kind: str, metadata: Mapping[str, Any], config: ModelConfig, where: str) -> None:
    """Refuses keys that say another shape than the config that was read.

    Raises:
      UnsupportedModelError: naming the key.
    """
    sizes = ("attention.key_length", "attention.value_length", "rope.dimension_count")
    expected: dict[str, Any] = {"vocab_size": config.vocabulary}
    for key in sizes if kind != "gpt2" else sizes[:2]:
        expected |= {key: config.head_dim, f"{key}_swa": config.head_dim}
    windows = [config.window(layer) for layer in range(config.layers)]
    for key, size in expected.items():
        value = metadata.get(f"{kind}.{key}", size)
        if value != size:
            raise UnsupportedModelError(
                f"{where}: {kind}.{key} is {value!r:.60}; Graft computes {size} in this model"
            )
    pattern = metadata.get(f"{kind}.attention.sliding_window_pattern")
    if isinstance(pattern, int) and pattern > 0:  # every so many layers one sees everything
        pattern = [(layer + 1) % pattern != 0 for layer in range(config.layers)]
    if pattern is not None and any(windows) and list(map(bool, windows)) != pattern:
        raise UnsupportedModelError(
            f"{where}: {kind}.attention.sliding_window_pattern is not that of the family"
        )


def notes(kind: str, metadata: Mapping[str, Any]) -> tuple[str, ...]:
    """What a file says and llama.cpp does not compute, so that Graft does not either; and how
    answers are to be drawn, which `graft generate` has options for."""
    settings = sorted(name for name in metadata if name.startswith("general.sampling."))
    sampling = tuple(f"{name} is {metadata[name]!r:.60}: not applied" for name in settings)
    if (count := metadata.get("split.count", 0)) > 1:
        sampling += (
            f"of its {count} files only the first says of which model it is: that the others are "
            "of the same one, and not of another that was cut alike, is not known. Compare their "
            "checksums with those where they come from",
        )
    window, longest = (
        metadata.get(f"{kind}.{key}") for key in ("attention.sliding_window", "context_length")
    )
    is_seen = isinstance(longest, int) and isinstance(window, int) and window >= longest
    if kind in WINDOWED or not window or is_seen:
        return sampling
    return (
        *sampling,
        f"{kind}.attention.sliding_window is {window!r:.60}: llama.cpp computes no windows for "
        f"{kind}, so the model is imported without; transformers' own files have them",
    )


def with_llama3_scaling(config: ModelConfig, tensors: GGUFTensors, path: Path) -> ModelConfig:
    """The config with Llama 3's scaling, whose stretched frequencies GGUF stores one by one.

    Raises:
      UnsupportedModelError: they are another scaling, or stand beside one.
    """
    if FREQUENCIES not in tensors.shapes:
        return config
    if config.rotary_scaling is not None:
        raise UnsupportedModelError(
            f"{path}: both {FREQUENCIES} and a factor for rotary positions; Graft computes one"
        )
    stretching = tensors.read(FREQUENCIES, (slice(None),))
    plain = np.asarray(rotary.frequencies(config, None))
    lengths = (8192, *(2**power for power in range(9, 18)))
    for factor, original in itertools.product((8.0, 32.0, 2.0, 4.0, 16.0, 64.0), lengths):
        scaling = RotaryScaling("llama3", factor, original_length=original)
        candidate = plain / np.asarray(rotary.frequencies(config, scaling))
        if candidate.shape == stretching.shape and np.allclose(candidate, stretching, rtol=1e-3):
            return dataclasses.replace(config, rotary_scaling=scaling)
    raise UnsupportedModelError(f"{path}: {FREQUENCIES} is no scaling of Llama 3's")
