"""The sums of a loss over (micro-)batches, and what the step differentiates in their place."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from research.batch import Batch
from research.losses.base import Counts, Loss, TokenLosses
from research.losses.cross_entropy import CrossEntropy
from research.losses.sequence_chunks import summed_losses, token_losses
from research.models.sites import Context


def loss_sums(
    loss: Loss,
    model: Any,
    hidden: jax.Array,
    batch: Batch,
    context: Context | None,
    counts: Counts | None,
) -> tuple[jax.Array, TokenLosses]:
    """A sum with the gradient of the loss, and the sums to report: of the loss over tokens or
    examples, of the rest over tokens, each with its batch's weight; [] each.

    Args:
      hidden: [B,S,D], ready for the head.
      counts: of the whole batch, of which this may be a part; for a loss that reads nll.
    """
    if isinstance(loss, CrossEntropy):
        sums = summed_losses(model, hidden, batch.targets, batch.weights, context, loss)
        return sums.loss, sums
    if loss.reads_logits:
        columns = dataclasses.replace(batch, adapter=None)  # what is left has columns
        sums = summed_losses(model, hidden, columns, batch.weights, context, loss)
        return sums.loss, sums
    assert counts is not None
    config = CrossEntropy(chunk=loss.chunk, vocabulary_chunks=loss.vocabulary_chunks)
    fixed_model, fixed_hidden = jax.lax.stop_gradient((model, hidden))
    tokens = token_losses(fixed_model, fixed_hidden, batch.targets, context, config)
    weights, value, metrics = loss.weigh(tokens.nll, batch, counts)
    sums = summed_losses(model, hidden, batch.targets, weights, context, config)
    nll, correct = (jnp.sum(x * batch.weights) for x in (tokens.nll, tokens.correct))
    return sums.loss, TokenLosses(value, nll, correct, metrics)
