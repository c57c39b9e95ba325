"""What a model says of the data before the first step, made once: a reference, or a teacher.

It is kept in the cache, under everything that it depends on: a batch stays a function of config,
seed and step, whatever was trained since.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from tqdm import tqdm

from research.batch import Batch
from research.config import schema
from research.data import cached_folder
from research.data.heldout import HeldOut
from research.data.packing import planning
from research.data.packing.planning import PackingPlan
from research.data.packing.rows import PackedRows, empty_rows
from research.data.pipeline import Pipeline
from research.data.sources.files import cache_folder
from research.text.token_table import Ragged
from research.training.observers import show
from research.training.program import Program

# Part of every key: raise it when the numbers or their meaning change.
_SCHEMA = 2

# Batch (on every host the whole) -> fields of it, on the host
Compute = Callable[[Batch], Mapping[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class ModelFields:
    """Fields of batches that one model gives.

    Attributes:
      name: "reference" or "teacher".
      path: where that model is.
      flops: of a token that it reads.
      content: what its numbers depend on beside the data and the mesh, as JSON.
      open: reads the model onto the devices; called at most once.
    """

    name: str
    path: str
    flops: float
    content: Mapping[str, Any]
    open: Callable[[], Compute]


def attach_fields(
    program: Program, data: Pipeline, heldout: Sequence[HeldOut], model: ModelFields
) -> None:
    """Gives the rows of all sources what a model says of them: from the cache, or from the model.

    Raises:
      ValueError: a folder of the cache is damaged.
    """
    compute = functools.cache(model.open)
    fields = program.experiment.loss.model_fields
    parts = [(name, data.rows[name], each.fingerprint) for name, each in data.origins.items()]
    parts += [(part.source, part.rows, part.fingerprint) for part in heldout]
    for source, rows, fingerprint in parts:
        if not rows.model_fields:
            values = _values(program, data, source, rows, fingerprint, model, compute)
            offsets = np.concatenate([[0], np.cumsum(rows.examples.lengths)])
            rows.model_fields = {name: Ragged(values[name], offsets) for name in fields}


def _values(
    program: Program,
    data: Pipeline,
    source: str,
    rows: PackedRows,
    fingerprint: str,
    model: ModelFields,
    compute: Callable[[], Compute],
) -> dict[str, np.ndarray]:
    """[T,...] of all tokens of a source's examples, one after the other, by field."""
    examples, config = rows.examples, data.config
    fields, plan = program.experiment.loss.model_fields, plan_of(rows, data)
    content = {
        model.name: _SCHEMA,
        **model.content,
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
    if examples.splittable:  # where a text is cut, the model has not seen what was before
        arrays = (plan.offsets, plan.examples, plan.starts, plan.lengths)
        sums = b"".join(hashlib.sha256(np.ascontiguousarray(x).tobytes()).digest() for x in arrays)
        content["plan"] = hashlib.sha256(sums).hexdigest()
    cache, title = cache_folder(f"{model.name}s"), f"{model.name} of {examples.name}"
    # scoring is one program of all hosts: they score together where one of them must
    is_missing = not cached_folder.has_folder(cache, content)
    if jax.process_count() > 1:
        is_missing = bool(multihost_utils.process_allgather(np.asarray(is_missing)).any())
    values: dict[str, np.ndarray] = {}
    if is_missing:
        if jax.process_index() == 0:
            tokens = config.sequence_length * len(plan)
            show(
                f"{model.name:<10} of {examples.name}, by {model.path}: {tokens:,} places, "
                f"{tokens * model.flops:.3g} FLOPs, once"
            )
        values = score_examples(rows, plan, data, fields, compute())

    def write(partial: Path) -> None:
        for name, array in values.items():
            np.save(partial / f"{name}.npy", array)

    about = {"name": examples.name, "examples": len(examples)}
    folder = cached_folder.cached_folder(cache, content, title, write, about)
    files = {
        name: np.load(folder / f"{name}.npy", mmap_mode="r").view(np.ndarray) for name in fields
    }
    for name, (shape, _) in fields.items():
        if files[name].shape != (examples.lengths.sum(), *shape):
            raise cached_folder.damaged(folder, title, "it is of other examples")
    return files


def plan_of(rows: PackedRows, data: Pipeline) -> PackingPlan:
    """The rows in which the model reads all examples: the same for every seed, unless texts are cut
    where the run's rows cut them."""
    if rows.examples.splittable:
        return rows.plan
    config = data.config
    return planning.plan(
        rows.examples.lengths, config.sequence_length, splittable=False, pack=config.pack, seed=0
    )


def score_examples(
    rows: PackedRows,
    plan: PackingPlan,
    data: Pipeline,
    fields: Mapping[str, tuple[tuple[int, ...], type]],
    compute: Compute,
) -> dict[str, np.ndarray]:
    """[T,...] of the tokens of all examples, one example after the other, by field."""
    config = data.config
    packed = PackedRows(rows.examples, plan, data.tokenizer.pad_id)
    offsets = np.concatenate([[0], np.cumsum(rows.examples.lengths)])
    values = {name: np.zeros((offsets[-1], *rest), kind) for name, (rest, kind) in fields.items()}
    batches = _batches(packed, config.batch_size, data.tokenizer.pad_id)
    total, hide = -(-len(packed) // config.batch_size), jax.process_index() != 0 or None
    bar = tqdm(batches, rows.examples.name, total, unit="batch", disable=hide, leave=False)
    for first, batch in bar:
        outputs = compute(batch)
        for row in range(first, min(first + config.batch_size, len(plan))):
            at = 0
            for piece in range(plan.offsets[row], plan.offsets[row + 1]):
                start = offsets[plan.examples[piece]] + int(plan.starts[piece])
                length = int(plan.lengths[piece])
                for name, output in outputs.items():
                    values[name][start : start + length] = output[row - first, at : at + length]
                at += length
    for name, array in values.items():
        if not np.isfinite(array).all():
            raise ValueError(f"{name}: what the model says is not finite: its weights are broken")
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
