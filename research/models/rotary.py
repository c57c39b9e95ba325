"""Rotary position embeddings (Su 2021, arXiv:2104.09864)."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from research.models.config import ModelConfig, RotaryScaling

Angles = tuple[jax.Array, jax.Array]


def angles(positions: jax.Array, config: ModelConfig) -> Angles:
    """Cosines and sines [W,B,S,1,N/2] at positions [B,S], for each of `config.window_kinds`."""
    by_window = []
    for window in config.window_kinds:
        base = config.rotary_base_in_windows if window else None
        scaling = None if base else config.rotary_scaling
        by_window.append(frequencies(config, scaling, base))
    positions = positions[None, :, :, None, None].astype(jnp.float32)
    angle = positions * jnp.stack(by_window)[:, None, None, None]
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x: jax.Array, angles: Angles) -> jax.Array:
    """Rotates the two halves of each head: x [B,S,H,N], angles [B,S,1,N/2] -> [B,S,H,N]."""
    cosine, sine = angles
    other = jnp.roll(x, x.shape[-1] // 2, axis=-1)  # the other half's number
    wide, other = x.astype(jnp.float32), other.astype(jnp.float32)
    cosine = jnp.concatenate([cosine, cosine], axis=-1)
    sine = jnp.concatenate([-sine, sine], axis=-1)
    return (wide * cosine + other * sine).astype(x.dtype)


def frequencies(
    config: ModelConfig, scaling: RotaryScaling | None, base: float | None = None
) -> jax.Array:
    """Radians per token [N/2]; `base` defaults to the config's."""
    exponents = -jnp.arange(0, config.head_dim, 2, dtype=jnp.float32) / config.head_dim
    plain = (base or config.rotary_base) ** exponents
    return plain if scaling is None else _scale(plain, scaling)


def _scale(frequencies: jax.Array, scaling: RotaryScaling) -> jax.Array:
    """Lower frequencies for contexts longer than pretraining's."""
    slow = frequencies / scaling.factor
    if scaling.kind == "linear":
        return slow
    # Llama 3.1: between the two wavelengths, a mix that is linear in turns per context
    turns = scaling.original_length * frequencies / (2 * math.pi)
    share = (turns - scaling.low_factor) / (scaling.high_factor - scaling.low_factor)
    share = jnp.clip(share, 0.0, 1.0)
    return (1 - share) * slow + share * frequencies
