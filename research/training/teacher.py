"""The run that a loss learns from: what it must be, and what it says of the data."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from research import sharding
from research.batch import Batch
from research.checkpoints import runs
from research.checkpoints.runs import Run
from research.config import schema
from research.losses.distillation import top_tokens
from research.models.sites import Context
from research.step import last_hidden
from research.text.tokenizer import Tokenizer
from research.training.cost import reading_flops
from research.training.model_fields import Compute, ModelFields
from research.training.program import Program


def open_teacher(path: str) -> Run:
    """The run in a folder; reads no array.

    Raises:
      ValueError: there is none.
    """
    try:
        return runs.open_run(path)
    except FileNotFoundError as error:
        raise ValueError(f"loss.teacher: {path} is no run that could teach: {error}") from error


def check_teacher(program: Program, teacher: Run, tokenizer: Tokenizer) -> None:
    """Whether a run can be the teacher of another one's loss.

    Raises:
      ValueError: it cannot; the message says why.
    """
    loss, data = program.experiment.loss, program.experiment.data
    path = loss.teacher
    if teacher.tokenizer.fingerprint() != tokenizer.fingerprint():
        raise ValueError(
            f"loss.teacher: {path} has another tokenizer than the run, so that it speaks of other "
            "tokens: train on its answers instead (docs/guides/distillation.md)"
        )
    if teacher.method.head_outputs:
        raise ValueError(
            f"loss.teacher: {path} says classes or a number by a head of its own, and no tokens"
        )
    if teacher.method.bank_names:
        raise ValueError(
            f"loss.teacher: {path} is a bank of adapters ({', '.join(teacher.method.bank_names)}): "
            "take one of them out (graft adapters)"
        )
    vocabulary = _vocabulary(program, teacher)
    if loss.top_k > vocabulary:
        raise ValueError(
            f"loss.top_k {loss.top_k}: {path} and the run have {vocabulary} tokens in common"
        )
    teacher.model.check_length(data.sequence_length, f"data.sequence_length of {path}")
    objectives = teacher.experiment.data.all_objectives if teacher.experiment else ()
    own_kinds = {each.kind for each in data.all_objectives if each.bidirectional}
    if missing := own_kinds - {each.kind for each in objectives}:
        raise ValueError(
            f"loss.teacher: {path} never read text both ways as data.objective "
            f"{' and '.join(sorted(missing))} gives it: its probabilities would mean nothing"
        )


def teacher_of(program: Program, teacher: Run) -> ModelFields:
    """The fields `teacher_tokens` and `teacher_log_probs`."""
    experiment = program.experiment
    model_config = experiment.compute.apply(teacher.model)
    top_k, vocabulary = experiment.loss.top_k, _vocabulary(program, teacher)

    def open_model() -> Compute:
        computed_as = dataclasses.replace(teacher, model=model_config)
        model = runs.load_model(computed_as, program.mesh, experiment.sharding_rules)
        rows = program.batch_sharding

        def compute(batch: Batch) -> dict[str, np.ndarray]:
            size = batch.tokens.shape[0]
            device_batch = sharding.place_rows(batch, rows, np.arange(size), size)
            outputs = _teach(model, device_batch, top_k, vocabulary)
            if not outputs[0].is_fully_addressable:
                outputs = multihost_utils.process_allgather(outputs, tiled=True)
            tokens, log_probs = map(np.asarray, outputs)
            return {"teacher_tokens": tokens, "teacher_log_probs": log_probs}

        return compute

    content = {
        "model": schema.to_dict(model_config),
        "weights": teacher.fingerprint,
        "top_k": top_k,
        "vocabulary": vocabulary,
    }
    flops = reading_flops(model_config, experiment.data.sequence_length)
    return ModelFields("teacher", str(teacher.path), flops, content, open_model)


def _vocabulary(program: Program, teacher: Run) -> int:
    """The logits that both have: behind the tokenizer's tokens some models have more of them."""
    return min(teacher.model.vocabulary, program.model_config.vocabulary)


@functools.partial(jax.jit, static_argnames=("top_k", "vocabulary"))
def _teach(model: Any, batch: Batch, top_k: int, vocabulary: int) -> tuple[jax.Array, jax.Array]:
    context = Context(batch.adapter)
    hidden = last_hidden(model, batch, context)
    return top_tokens(model, hidden, context, top_k, vocabulary)
