"""Losses of a model on the host, and its loss on text that it does not train on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from research import sharding
from research.batch import Batch
from research.data.heldout import HeldOut
from research.data.pipeline import Pipeline
from research.evaluation import scoring
from research.evaluation.scoring import Score
from research.step import eval_step

_eval_step = jax.jit(eval_step)


def make_score(model: Any, rows: jax.sharding.NamedSharding) -> Score:
    """Batch (on every host the whole) -> negative log-likelihoods [B,S], in nats."""

    def score(batch: Batch) -> np.ndarray:
        size = batch.tokens.shape[0]
        placed = sharding.place_rows(batch, rows, np.arange(size), size)
        nll = _eval_step(model, placed).nll
        if not nll.is_fully_addressable:
            nll = multihost_utils.process_allgather(nll, tiled=True)
        return np.asarray(nll)

    return score


def open_heldout(data: Pipeline, split: str | None, max_tokens: int | None) -> list[HeldOut]:
    """The split of every source of a pipeline, or a part of it; none for None."""
    if split is None:
        return []
    return [data.heldout(source.name, split, max_tokens) for source in data.config.sources]


def heldout_loss(score: Score, parts: Sequence[HeldOut]) -> dict[str, float]:
    """`heldout_loss` in nats a trained token, over all sources, and `heldout_bits_per_byte` where
    the objective's nats are a code for text."""
    nats = float(sum(scoring.row_nats(score, part.batches()).sum() for part in parts))
    tokens, size = (sum(getattr(part, what) for part in parts) for what in ("tokens", "bytes"))
    bits = {"heldout_bits_per_byte": scoring.bits_per_byte(nats, size)} if size else {}
    return {"heldout_loss": nats / tokens, **bits}
