"""Log-probabilities of answers by the model that a run starts from, made once.

They are kept in the cache, under everything that they depend on: a batch stays a function of
config, seed and step, whatever was trained since. An adapter that is switched off would give the
same numbers, in a pass more of every step.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from research.batch import Batch
from research.config import schema
from research.data import cached_folder
from research.data.heldout import HeldOut
from research.data.packing import planning
from research.data.packing.rows import PackedRows, empty_rows
from research.data.pipeline import Pipeline
from research.data.sources.files import cache_folder
from research.text.token_table import Ragged
from research.training.heldout_loss import Score, make_score
from research.training.observers import show
from research.training.program import Program

# Part of every key: raise it when the numbers or their meaning change.
_SCHEMA = 1
_FILE = "log_probs.npy"


def attach_references(
    program: Program, data: Pipeline, heldout: Sequence[HeldOut], make_initial: Callable[[], Any]
) -> None:
    """Gives the rows of all sources `reference`: from the cache, or from the model at the start.

    Args:
      make_initial: makes the model at the start on the devices; called at most once.

    Raises:
      ValueError: a folder of the cache is damaged.
    """

    @functools.cache
    def score() -> Score:
        return make_score(make_initial(), program.batch_sharding)

    parts = [(name, data.rows[name], each.fingerprint) for name, each in data.origins.items()]
    parts += [(part.source, part.rows, part.fingerprint) for part in heldout]
    for source, rows, fingerprint in parts:
        if rows.reference is None:
            values = _reference(program, data, source, rows, fingerprint, score)
            offsets = np.concatenate([[0], np.cumsum(rows.examples.lengths)])
            rows.reference = Ragged(values, offsets)


def _reference(
    program: Program,
    data: Pipeline,
    source: str,
    rows: PackedRows,
    fingerprint: str,
    score: Callable[[], Score],
) -> np.ndarray:
    """[T] float32 of all tokens of a source's examples, one after the other."""
    examples, config, initial = rows.examples, data.config, program.initial
    content = {
        "reference": _SCHEMA,
        "base": initial.fingerprint if initial else None,
        "model": schema.to_dict(program.model_config),
        "source": fingerprint,
        "examples": hashlib.sha256(examples.lengths.tobytes()).hexdigest(),
        "objective": schema.to_dict(config.objective_of(source)),
        "tokenizer": data.tokenizer.fingerprint(),
        # a template of the same length writes other tokens
        "template": [data.tokenizer.template_tokens, dict(examples.sidecar_files)],
        # sums of floats depend on the shapes that they are made in
        "rows": [config.sequence_length, config.batch_size, config.pack],
        "mesh": [jax.default_backend(), *map(list, program.mesh.shape.items())],
    }
    cache, title = cache_folder("references"), f"reference of {examples.name}"
    # scoring is one program of all hosts: they score together where one of them must
    is_missing = not cached_folder.has_folder(cache, content)
    if jax.process_count() > 1:
        is_missing = bool(multihost_utils.process_allgather(np.asarray(is_missing)).any())
    values = np.zeros(0, np.float32)
    if is_missing:
        if jax.process_index() == 0:
            show(f"reference  of {examples.name}, by {initial.path if initial else ''}")
        values = score_examples(rows, data, score())

    def write(partial: Path) -> None:
        np.save(partial / _FILE, values)

    about = {"name": examples.name, "examples": len(examples)}
    folder = cached_folder.cached_folder(cache, content, title, write, about)
    log_probs = np.load(folder / _FILE, mmap_mode="r").view(np.ndarray)
    if len(log_probs) != examples.lengths.sum():
        raise cached_folder.damaged(folder, title, "it is of other examples")
    return log_probs


def score_examples(rows: PackedRows, data: Pipeline, score: Score) -> np.ndarray:
    """[T] log-probabilities of the targets of all examples, one example after the other."""
    examples, config = rows.examples, data.config
    lengths = examples.lengths
    plan = planning.plan(
        lengths, config.sequence_length, splittable=False, pack=config.pack, seed=0
    )
    packed = PackedRows(examples, plan, data.tokenizer.pad_id)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    values = np.zeros(offsets[-1], np.float32)
    for first, batch in _batches(packed, config.batch_size, data.tokenizer.pad_id):
        nll = score(batch)
        for row in range(first, min(first + config.batch_size, len(plan))):
            at = 0
            for piece in range(plan.offsets[row], plan.offsets[row + 1]):
                example, length = plan.examples[piece], int(plan.lengths[piece])
                here = slice(offsets[example], offsets[example] + length)
                values[here] = -nll[row - first, at : at + length]
                at += length
    if not np.isfinite(values).all():
        raise ValueError("the reference's likelihoods are not finite: its weights are broken")
    return values


def _batches(packed: PackedRows, size: int, pad_id: int) -> Iterator[tuple[int, Batch]]:
    """Number of the first row, and the batch; the last is padded."""
    for first in range(0, len(packed), size):
        numbers = list(range(first, min(first + size, len(packed))))
        fields: dict[str, Any] = empty_rows(size, packed.plan.sequence_length, pad_id)
        packed.write(fields, list(range(len(numbers))), numbers)
        for name in ("roles", "values"):
            fields.pop(name, None)
        yield first, Batch(**fields)
