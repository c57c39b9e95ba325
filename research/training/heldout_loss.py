"""The loss of a model on text that it does not train on, in nats and in bits per byte."""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from tqdm import tqdm

from research import sharding
from research.batch import Batch
from research.data.heldout import HeldOut
from research.data.pipeline import Pipeline
from research.losses.base import Counts, Loss, TokenLosses, Weighing
from research.losses.sequence_chunks import token_losses
from research.models.sites import Context
from research.step import eval_step, last_hidden

# Batch -> negative log-likelihoods [B,S] in nats, on the host
Score = Callable[[Batch], np.ndarray]


class EvaluationMetrics(NamedTuple):
    """What a run measured of its model beside training, and the step that it was measured at."""

    step: int = 0
    metrics: Mapping[str, float] = {}


_eval_step = jax.jit(eval_step)


def make_losses(model: Any, rows: jax.sharding.NamedSharding) -> Callable[[Batch], TokenLosses]:
    """Batch (on every host the whole) -> its losses [B,S], on the devices."""

    def losses(batch: Batch) -> TokenLosses:
        size = batch.tokens.shape[0]
        return _eval_step(model, sharding.place_rows(batch, rows, np.arange(size), size))

    return losses


def make_score(model: Any, rows: jax.sharding.NamedSharding) -> Score:
    """Batch (on every host the whole) -> negative log-likelihoods [B,S], in nats."""
    losses = make_losses(model, rows)

    def score(batch: Batch) -> np.ndarray:
        nll = losses(batch).nll
        if not nll.is_fully_addressable:
            nll = multihost_utils.process_allgather(nll, tiled=True)
        return np.asarray(nll)

    return score


def make_outputs(model: Any, rows: jax.sharding.NamedSharding) -> Callable[[Batch], np.ndarray]:
    """Batch (on every host the whole) -> [B,C] float32, what a head says where each row is trained
    on last."""

    def outputs(batch: Batch) -> np.ndarray:
        size = batch.tokens.shape[0]
        scores = _outputs(model, sharding.place_rows(batch, rows, np.arange(size), size))
        if not scores.is_fully_addressable:
            scores = multihost_utils.process_allgather(scores, tiled=True)
        return np.asarray(scores)

    return outputs


@jax.jit
def _outputs(model: Any, batch: Batch) -> jax.Array:
    context = Context(batch.adapter)
    columns = jnp.arange(batch.tokens.shape[1]) * (batch.weights > 0)
    last = jnp.max(columns, axis=1)[:, None, None]
    hidden = jnp.take_along_axis(last_hidden(model, batch, context), last, axis=1)
    return model.logits(hidden, context)[:, 0]


def row_nats(score: Score, batches: Iterable[Batch]) -> np.ndarray:
    """Negative log-likelihood of what each row trains on, [rows]; the sum is the text's."""
    return np.concatenate(
        [np.sum(score(batch) * batch.weights, axis=1, dtype=np.float64) for batch in batches]
    )


def document_nats(score: Score, part: HeldOut, bar: tqdm) -> np.ndarray:
    """Negative log-likelihood of what is trained on of each document, [documents], in the order of
    `source_rows`.

    Args:
      bar: moves with its batches.
    """
    nats = np.zeros(part.documents)
    for index, batch in enumerate(part.batches()):
        values = score(batch) * batch.weights
        for row, numbers in enumerate(part.documents_of(index)):
            count = len(numbers) + 1  # padding is segment 0
            np.add.at(nats, numbers, np.bincount(batch.segments[row], values[row], count)[1:])
        bar.update()
    return nats


def bits_per_byte(nats: float, text_bytes: int) -> float:
    """Bits for each UTF-8 byte of the text.

    Raises:
      ValueError: no text.
    """
    if not text_bytes:
        raise ValueError("bits per byte of nothing: the held-out text is empty")
    return nats / math.log(2) / text_bytes


def open_heldout(
    data: Pipeline, split: str | None, max_tokens: int | None, sources: Sequence[str] = ()
) -> list[HeldOut]:
    """The split of every source of a pipeline (or of those of these names), or a part of it; none
    for None."""
    if split is None:
        return []
    names = sources or [source.name for source in data.config.sources]
    return [data.heldout(name, split, max_tokens) for name in names]


def heldout_loss(score: Score, parts: Sequence[HeldOut]) -> dict[str, float]:
    """`heldout_loss` in nats a trained token, over all sources, and `heldout_bits_per_byte` where
    the objective's nats are a code for text. Where sources have objectives of their own, also both
    of each source, as `heldout_loss/NAME`."""
    nats = [float(row_nats(score, part.batches()).sum()) for part in parts]
    metrics = _loss_and_bits(sum(nats), parts, "")
    if any(part.has_own_objective for part in parts):
        for part, own in zip(parts, nats, strict=True):
            metrics |= _loss_and_bits(own, [part], f"/{part.source}")
    return metrics


def _loss_and_bits(nats: float, parts: Sequence[HeldOut], end: str) -> dict[str, float]:
    """The metrics of some parts, with `end` behind their names."""
    tokens, size = (sum(getattr(part, what) for part in parts) for what in ("tokens", "bytes"))
    bits = {f"heldout_bits_per_byte{end}": bits_per_byte(nats, size)} if size else {}
    return {f"heldout_loss{end}": nats / tokens, **bits}


def evaluate_heldout(
    model: Any,
    rows: jax.sharding.NamedSharding,
    parts: Sequence[HeldOut],
    loss: Loss | None = None,
) -> dict[str, float]:
    """`heldout_loss` of a model, with batches that lie on `rows`.

    Of a loss that reads likelihoods its own value and metrics, over all examples; of one that reads
    logits its metrics beside the loss of the text.
    """
    if loss is not None and loss.reads_logits:
        return _loss_and_metrics(model, rows, parts, loss)
    score = make_score(model, rows)
    if loss is None or not loss.reads_nll:
        return heldout_loss(score, parts)
    batches = [batch for part in parts for batch in part.batches()]
    counts = [loss.count(batch) for batch in batches]
    total = jax.tree.map(lambda *each: sum(each), *counts)
    sums: collections.Counter[str] = collections.Counter()
    for batch in batches:
        _, value, metrics = _weigh(loss.without_numbers(), loss.numbers, score(batch), batch, total)
        sums.update({name: float(each) for name, each in {"loss": value, **metrics}.items()})
    return {f"heldout_{name}": each / float(total.divisor) for name, each in sums.items()}


def _loss_and_metrics(
    model: Any, rows: jax.sharding.NamedSharding, parts: Sequence[HeldOut], loss: Loss
) -> dict[str, float]:
    """Of a loss that reads logits, see `evaluate_heldout`; in one pass."""
    sums: dict[str, float] = collections.defaultdict(float)

    def score(batch: Batch) -> np.ndarray:
        size = batch.tokens.shape[0]
        device_batch = sharding.place_rows(batch, rows, np.arange(size), size)
        losses = _token_losses(loss.without_numbers(), loss.numbers, model, device_batch)
        if not losses.nll.is_fully_addressable:
            losses = multihost_utils.process_allgather(losses, tiled=True)
        for name, values in losses.metrics.items():
            sums[name] += float(np.sum(np.asarray(values) * batch.weights, dtype=np.float64))
        return np.asarray(losses.nll)

    metrics = heldout_loss(score, parts)
    tokens = sum(part.tokens for part in parts)
    return metrics | {f"heldout_{name}": each / tokens for name, each in sums.items()}


@functools.partial(jax.jit, static_argnums=0)
def _token_losses(loss: Loss, numbers: Any, model: Any, batch: Batch) -> TokenLosses:
    context = Context(batch.adapter)
    hidden, columns = last_hidden(model, batch, context), dataclasses.replace(batch, adapter=None)
    return token_losses(model, hidden, columns, context, loss.with_numbers(numbers))


@functools.partial(jax.jit, static_argnums=0)
def _weigh(loss: Loss, numbers: Any, nll: Any, batch: Batch, counts: Counts) -> Weighing:
    return loss.with_numbers(numbers).weigh(nll, batch, counts)
