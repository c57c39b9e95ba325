"""Prompt and prefix tuning in PEFT's format: one tensor of virtual tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from research.interop.fields import UnsupportedModelError
from research.methods import Method, Prefix, Prompt
from research.models import rotary
from research.models.config import ModelConfig

NAME = "prompt_embeddings"
KINDS = {"PROMPT_TUNING": "prompt", "PREFIX_TUNING": "prefix"}


def write(
    method: Prompt | Prefix, arrays: Mapping[str, np.ndarray], config: ModelConfig
) -> tuple[np.ndarray, dict[str, Any]]:
    """The tensor, and the fields of `adapter_config.json`.

    Args:
      arrays: what the method attached, by single-layer name.

    Raises:
      UnsupportedModelError: what PEFT would place at other positions.
    """
    _check(method, config)
    if isinstance(method, Prompt):
        vectors = arrays[f"embedding/site/{method.adapter}/vectors"]
        heads, width = config.heads, config.width
        # PEFT puts them behind the embedding's scale
        tensor, kind = vectors * np.float32(config.embedding_scale), "PROMPT_TUNING"
    else:
        pairs = [_pair(method, arrays, layer) for layer in range(config.layers)]
        heads, width = config.kv_heads, config.kv_heads * config.head_dim
        pairs = [(_turn(keys, config, layer, 1), v) for layer, (keys, v) in enumerate(pairs)]
        tensor = np.stack([part for pair in pairs for part in pair], axis=1)
        tensor, kind = tensor.reshape(method.length, -1), "PREFIX_TUNING"
    return tensor, {
        "peft_type": kind,
        "num_virtual_tokens": method.length,
        "token_dim": width,
        "num_transformer_submodules": 1,
        "num_attention_heads": heads,
        "num_layers": config.layers,
        **({"encoder_hidden_size": width, "prefix_projection": False} if heads != config.heads
           or kind == "PREFIX_TUNING" else {"prompt_tuning_init": "RANDOM"}),
    }  # fmt: skip


def read(
    content: Mapping[str, Any], tensor: np.ndarray, config: ModelConfig, where: str
) -> tuple[Method, dict[str, np.ndarray]]:
    """The method, and what it attaches by single-layer name.

    Raises:
      UnsupportedModelError: a tensor of another shape, or what PEFT would place at other positions.
    """
    length, layers = content.get("num_virtual_tokens"), config.layers
    if (submodules := content.get("num_transformer_submodules")) not in (None, 1):
        raise UnsupportedModelError(
            f"{where}: num_transformer_submodules is {submodules!r}; a decoder alone has 1"
        )
    kind = KINDS[content["peft_type"]]
    width = config.width if kind == "prompt" else 2 * layers * config.kv_heads * config.head_dim
    if not isinstance(length, int) or length < 1 or tensor.shape != (length, width):
        raise UnsupportedModelError(
            f"{where}: {NAME} has shape {tensor.shape}, not ({length!r}, {width})"
        )
    tensor = np.asarray(tensor, np.float32)
    if kind == "prompt":
        prompt = Prompt(length=length, start="random")
        _check(prompt, config)
        vectors = tensor / np.float32(config.embedding_scale)
        return prompt, {f"embedding/site/{prompt.adapter}/vectors": vectors}
    prefix = Prefix(length=length)
    _check(prefix, config)
    pairs = tensor.reshape(length, layers, 2, -1)
    arrays = {}
    for layer in range(layers):
        site = f"layers/{layer}/attention/site/{prefix.adapter}"
        arrays[f"{site}/keys"] = _turn(pairs[:, layer, 0], config, layer, -1)
        arrays[f"{site}/values"] = pairs[:, layer, 1]
    return prefix, arrays


def _check(method: Prompt | Prefix, config: ModelConfig) -> None:
    if any(config.windows):
        raise UnsupportedModelError(
            f"PEFT's {method.kind} leaves a layer's window; Graft's never does"
        )
    if isinstance(method, Prompt):
        return
    if config.learned_positions:
        raise UnsupportedModelError("PEFT moves learned positions behind a prefix; Graft does not")
    if method.targets != Prefix().targets:
        raise UnsupportedModelError("PEFT's prefix is in every layer")


def _pair(
    method: Prefix, arrays: Mapping[str, np.ndarray], layer: int
) -> tuple[np.ndarray, np.ndarray]:
    """A layer's keys and values [P,K*N]."""
    site = f"layers/{layer}/attention/site/{method.adapter}"
    if not method.reparameterized:
        return arrays[f"{site}/keys"], arrays[f"{site}/values"]
    shared = f"methods/{method.adapter}"
    inner = np.tanh(
        arrays[f"{shared}/vectors"] @ arrays[f"{shared}/into"] + arrays[f"{shared}/bias"]
    )
    both = np.einsum("pm,mcw->cpw", inner, arrays[f"{site}/out"])
    keys, values = both + arrays[f"{site}/out_bias"][:, None]
    return keys, values


def _turn(keys: np.ndarray, config: ModelConfig, layer: int, sign: int) -> np.ndarray:
    """Keys [P,K*N] as PEFT has them, where texts begin at position P and not at 0 (sign 1), or
    back (-1)."""
    heads = jnp.asarray(keys).reshape(1, len(keys), config.kv_heads, config.head_dim)
    positions = jnp.full((1, len(keys)), sign * len(keys))
    kind = config.window_kinds.index(config.window(layer))
    angles = jax.tree.map(lambda every: every[kind], rotary.angles(positions, config))
    return np.asarray(rotary.rotate(heads, angles)).reshape(keys.shape)
