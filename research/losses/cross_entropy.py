"""Cross-entropy and what is added to it, however the logits are made: in chunks of the sequence
(`research.losses.sequence_chunks`) or of the vocabulary (`research.losses.vocabulary_chunks`)."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from research.config.schema import BelowOne, Count, NonNegative, Positive


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """What is added to plain cross-entropy, and how much of it is computed at once."""

    # share of the target's probability spread evenly over the vocabulary (Szegedy 2015)
    label_smoothing: BelowOne = 0.0
    # weight of log(normaliser)^2, which keeps logits from drifting (PaLM, arXiv:2204.02311)
    z_loss: NonNegative = 0.0
    # columns of the sequence whose logits exist at one time
    chunk: Positive = 128
    # cut the vocabulary into so many chunks instead, for large heads that devices share; 0: do not
    vocabulary_chunks: Count = 0


class TokenLosses(NamedTuple):
    """Per-token results, each [B,S], or their sums."""

    trained: jax.Array  # what training minimises
    nll: jax.Array  # negative log-likelihood in nats
    correct: jax.Array  # whether no token is likelier than the target, float32


def losses(
    highest: jax.Array,
    normaliser: jax.Array,
    chosen: jax.Array,
    mean: jax.Array | float,
    config: LossConfig,
) -> TokenLosses:
    """Losses [B,S] from each token's highest logit, log of the sum of exponentials, logit of the
    target, and mean logit (read with label smoothing alone)."""
    trained = nll = normaliser - chosen
    if smooth := config.label_smoothing:
        trained = (1 - smooth) * nll + smooth * (normaliser - mean)
    if config.z_loss:
        trained += config.z_loss * normaliser**2
    return TokenLosses(trained, nll, (chosen >= highest).astype(jnp.float32))


def slope(
    share: jax.Array, normaliser: jax.Array, hit: jax.Array, vocabulary: int, config: LossConfig
) -> jax.Array:
    """How `trained` grows with each logit [B,S,C].

    Args:
      share: [B,S,C] their probabilities.
      hit: [B,S,C] bool, which of them are the targets.
      vocabulary: V, of which C may be a chunk.
    """
    if config.z_loss:
        share *= 1 + 2 * config.z_loss * normaliser[..., None]
    smooth = config.label_smoothing
    return share - jnp.where(hit, 1 - smooth, 0.0) - smooth / vocabulary
