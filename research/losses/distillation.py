"""Distillation (Hinton 2015, arXiv:1503.02531) from the likeliest tokens of a teacher."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal, Self

import jax
import jax.numpy as jnp
import numpy as np

from research.batch import Batch
from research.config.schema import Positive, PositiveNumber, Share
from research.losses.base import Counts, Loss, TokenLosses
from research.losses.sequence_chunks import scan_chunks
from research.models.sites import Context

# log-probability of what cannot be: its exponential is 0, and 0 times it is too
_NEVER = -1e9


@dataclasses.dataclass(frozen=True)
class Distillation(Loss):
    """alpha * T^2 * KL(teacher || student) + (1 - alpha) * nll of the data's own next token.

    Both distributions are over K + 1 outcomes, the teacher's K likeliest tokens and "another one",
    and softened by the temperature, p_T = p^(1/T) / sum p^(1/T) (Hinton's equation 1), for which
    T^2 keeps the size of gradients. At T = 1 that is a lower bound of the KL over the vocabulary, 0
    where the student agrees on the K tokens and so on the rest; with K = V it is Hinton's loss.
    Renormalised over the K tokens instead, a teacher would say that no other one ever follows, and
    its student would be surer than it is (Anshumann 2025, arXiv:2503.16870).
    """

    # the folder of the run that teaches, or one of its checkpoints, with the run's own tokenizer
    teacher: str | None = None
    # K, tokens of the teacher at each position: 8 * K bytes in the cache for each token of the data
    top_k: Positive = 32
    # share of the teacher in the loss; the rest is that of the data's own next token
    alpha: Share = 0.5
    # T: above 1, what is less likely counts more
    temperature: PositiveNumber = 1.0
    # columns of the sequence whose logits are in memory at one time
    chunk: Positive = 128
    kind: Literal["distillation"] = "distillation"

    array_fields: ClassVar[tuple[str, ...]] = ("alpha", "temperature")
    reads_logits: ClassVar[bool] = True
    metric_names: ClassVar[tuple[str, ...]] = ("kl", "top_k_mass")
    shown_metrics: ClassVar[tuple[str, ...]] = ("kl",)
    needs_teacher: ClassVar[bool] = True
    vocabulary_chunks = 0  # the teacher's tokens lie in any of them

    @property
    def model_fields(self) -> dict[str, tuple[tuple[int, ...], type]]:
        return {
            "teacher_tokens": ((self.top_k,), np.int32),
            "teacher_log_probs": ((self.top_k + 1,), np.float32),
        }

    def without_numbers(self) -> Self:
        """The same for all that differ in numbers and teachers alone."""
        any_teacher = None if self.teacher is None else ""
        return dataclasses.replace(super().without_numbers(), teacher=any_teacher)

    def count(self, batch: Batch) -> Counts:
        """Both sums are that of the weights."""
        tokens = jnp.sum(batch.weights)
        return Counts(tokens, tokens)

    def token_losses(self, logits: jax.Array, batch: Batch) -> TokenLosses:
        assert batch.teacher_tokens is not None and batch.teacher_log_probs is not None
        outcomes = _outcomes(logits, jnp.asarray(batch.teacher_tokens))
        target_logit = jnp.take_along_axis(logits, batch.targets[..., None], axis=-1)[..., 0]
        nll = jax.nn.logsumexp(outcomes, axis=-1) - target_logit
        teacher = jnp.asarray(batch.teacher_log_probs)[..., : outcomes.shape[-1]]
        log_p = jax.nn.log_softmax(outcomes / self.temperature)
        log_q = jax.nn.log_softmax(teacher / self.temperature)
        kl = jnp.sum(jnp.exp(log_q) * (log_q - log_p), axis=-1)
        loss = self.alpha * self.temperature**2 * kl + (1 - self.alpha) * nll
        correct = (target_logit >= jnp.max(logits, axis=-1)).astype(jnp.float32)
        mass = jnp.sum(jnp.exp(teacher[..., : self.top_k]), axis=-1)
        return TokenLosses(loss, nll, correct, {"kl": kl, "top_k_mass": mass})


def top_tokens(
    model: Any, hidden: jax.Array, context: Context | None, top_k: int, vocabulary: int
) -> tuple[jax.Array, jax.Array]:
    """What a teacher says: its likeliest tokens [B,S,K], and log-probabilities [B,S,K+1] of these
    and of all others together, as `Batch` has them.

    Args:
      hidden: [B,S,D], ready for the head.
      vocabulary: logits beyond it are of no token of the student, and left out.
    """
    project = model.projection()

    def body(_, hidden):
        logits = project(hidden, context)[..., :vocabulary]
        _, tokens = jax.lax.top_k(logits, top_k)
        log_probs = jax.nn.log_softmax(_outcomes(logits, tokens))
        if log_probs.shape[-1] == top_k:
            log_probs = jnp.pad(log_probs, ((0, 0), (0, 0), (0, 1)), constant_values=_NEVER)
        return None, (tokens.astype(jnp.int32), log_probs)

    return scan_chunks(body, None, hidden, Distillation.chunk)[1]


def _outcomes(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    """Logits [B,C,K+1] of K tokens [B,C,K] and of all others together; [B,C,K] if there is none.

    Of the others in a sum of their own: 1 less the probability of the K would lose its digits where
    these are nearly certain.
    """
    chosen_logits = jnp.take_along_axis(logits, tokens, axis=-1)
    if tokens.shape[-1] == logits.shape[-1]:
        return chosen_logits
    others = jnp.put_along_axis(logits, tokens, -jnp.inf, axis=-1, inplace=False)
    return jnp.concatenate([chosen_logits, jax.nn.logsumexp(others, axis=-1, keepdims=True)], -1)
