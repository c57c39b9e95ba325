"""Cross-entropy over the vocabulary in chunks: `[B,S,V]` logits never exist."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from research.batch import Array
from research.config import BelowOne, NonNegative, Positive
from research.models.sites import Context


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """What is added to plain cross-entropy, and how much of it is computed at once."""

    # share of the target's probability spread evenly over the vocabulary (Szegedy 2015)
    label_smoothing: BelowOne = 0.0
    # weight of log(normaliser)^2, which keeps logits from drifting (PaLM, arXiv:2204.02311)
    z_loss: NonNegative = 0.0
    # columns of the sequence whose logits exist at one time
    chunk: Positive = 128


class TokenLosses(NamedTuple):
    """Per-token results, each [B,S]."""

    trained: jax.Array  # what training minimises
    nll: jax.Array  # negative log-likelihood in nats
    correct: jax.Array  # whether the likeliest token is the target, float32


def token_losses(
    model: Any, hidden: jax.Array, targets: Array, context: Context | None, config: LossConfig
) -> TokenLosses:
    """Losses of hidden states [B,S,D] against targets [B,S].

    The logits of a chunk are recomputed in the backward pass, so at most [B,chunk,V] are alive.
    """
    b, s, d = hidden.shape
    chunk = min(config.chunk, s)
    count = -(-s // chunk)
    pad = count * chunk - s
    hidden = jnp.pad(hidden, ((0, 0), (0, pad), (0, 0)))
    targets = jnp.pad(targets, ((0, 0), (0, pad)))

    @jax.checkpoint
    def one(model, hidden, targets):
        logits = model.logits(hidden, context)
        normaliser = jax.nn.logsumexp(logits, axis=-1)
        nll = normaliser - jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
        trained = nll
        if config.label_smoothing:
            even = normaliser - jnp.mean(logits, axis=-1)
            trained = (1 - config.label_smoothing) * nll + config.label_smoothing * even
        if config.z_loss:
            trained += config.z_loss * normaliser**2
        correct = jnp.argmax(logits, axis=-1) == targets
        return TokenLosses(trained, nll, correct.astype(jnp.float32))

    if count == 1:
        return one(model, hidden, targets)
    chunks = (
        hidden.reshape(b, count, chunk, d).swapaxes(0, 1),
        targets.reshape(b, count, chunk).swapaxes(0, 1),
    )
    _, losses = jax.lax.scan(lambda _, part: (None, one(model, *part)), None, chunks)
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(b, -1)[:, :s], losses)
