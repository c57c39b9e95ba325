"""Cross-entropy with label smoothing and z-loss, from statistics of each token's logits.

The logits come in chunks of the sequence (`research.losses.sequence_chunks`) or of the vocabulary
(`research.losses.vocabulary_chunks`).
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp

from research.batch import Batch
from research.config.schema import BelowOne, Count, NonNegative, Positive
from research.losses.base import Counts, Loss, TokenLosses


@dataclasses.dataclass(frozen=True)
class CrossEntropy(Loss):
    """Cross-entropy of every token with its batch's weight; the only loss in one pass of the head.

    Of a document's class too, which is the target of its last token (`methods.classifier`).
    Its numbers are constants of the program, as 0 compiles less.
    """

    # share of the target's probability spread evenly over the vocabulary (Szegedy 2015)
    label_smoothing: BelowOne = 0.0
    # weight of log(Z)^2, which keeps logits from drifting (PaLM, arXiv:2204.02311)
    z_loss: NonNegative = 0.0
    # columns of the sequence whose logits are in memory at one time
    chunk: Positive = 128
    # number of chunks of the vocabulary instead, for large heads that devices share; 0: none
    vocabulary_chunks: Count = 0
    kind: Literal["cross_entropy"] = "cross_entropy"

    example_kinds: ClassVar[tuple[str, ...]] = ("texts", "classes")

    def count(self, batch: Batch) -> Counts:
        """Both sums are that of the weights."""
        tokens = jnp.sum(batch.weights)
        return Counts(tokens, tokens)


def losses(
    max_logit: jax.Array,
    log_z: jax.Array,
    target_logit: jax.Array,
    mean: jax.Array | float,
    config: CrossEntropy,
) -> TokenLosses:
    """Losses [B,S] from each token's largest logit, log of the sum of exponentials, logit of the
    target, and mean logit (used with label smoothing only)."""
    loss = nll = log_z - target_logit
    if smooth := config.label_smoothing:
        loss = (1 - smooth) * nll + smooth * (log_z - mean)
    if config.z_loss:
        loss += config.z_loss * log_z**2
    return TokenLosses(loss, nll, (target_logit >= max_logit).astype(jnp.float32))


def logits_grad(
    probs: jax.Array, log_z: jax.Array, is_target: jax.Array, vocabulary: int, config: CrossEntropy
) -> jax.Array:
    """The gradient of `loss` with respect to each logit [B,S,C].

    Args:
      probs: [B,S,C] probabilities.
      is_target: [B,S,C] bool, whether the logit is the target's.
      vocabulary: V; C may be a chunk of it.
    """
    if config.z_loss:
        probs *= 1 + 2 * config.z_loss * log_z[..., None]
    smooth = config.label_smoothing
    return probs - jnp.where(is_target, 1 - smooth, 0.0) - smooth / vocabulary
