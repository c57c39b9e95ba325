"""Soups: weighted means of whole models that started from one (Wortsman 2022, arXiv:2203.05482)."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from research import tree
from research.adapters.compatibility import check_finite, common_experiment
from research.checkpoints import runs
from research.checkpoints.runs import Run
from research.config import schema
from research.models.config import ComputeConfig, ModelConfig
from research.tree import Arrays


def add(parts: Sequence[tuple[float, Run]], out: str | os.PathLike[str]) -> Path:
    """Writes the weighted mean of whole models, a model like them; returns the step's folder.

    The models were trained from one start, which may be among them: with weights 1, 1 and -1 a
    soup adds what two runs learnt of their start (task arithmetic, arXiv:2212.04089).

    Raises:
      ValueError: weights whose sum is not 1, models of different starts, shapes or tokenizers, or
        numbers that are not finite; nothing is written.
      FileExistsError: the folder holds a model.
    """
    runs.check_free(out)
    total = math.fsum(weight for weight, _ in parts)
    if abs(total - 1) > 1e-6:  # thirds of six digits are a mean
        raise ValueError(
            f"the weights of whole models sum to 1, not to {total:g}: what they add to their "
            "start is weighed with the start itself as one of them"
        )
    models = [run for _, run in parts]
    start, first = common_start(models), models[0]
    for run in models:
        _check_alike(first, run)
    arrays: Arrays = {}
    for name in first.checkpoint.checksums("model/"):
        terms = [(np.float32(weight), run.read(name)[name]) for weight, run in parts]
        mean = sum(weight * array.astype(np.float32) for weight, array in terms)
        arrays[name] = np.asarray(mean).astype(terms[0][1].dtype)
    check_finite(arrays, "the soup")
    facts = {"soup": [[weight, str(run.path)] for weight, run in parts], "initial": start}
    experiment = common_experiment(models)
    return runs.write(out, first, arrays, first.model, experiment=experiment, extra_metadata=facts)


def common_start(models: Sequence[Run]) -> str:
    """The fingerprint of the model that all started from, or are.

    Raises:
      ValueError: there is none.
    """
    starts = [run.checkpoint.metadata().get("initial") for run in models]
    choices = [{run.fingerprint, start} for run, start in zip(models, starts, strict=True)]
    common = [each for each in set.intersection(*choices) if each is not None]
    if not common:
        rows = ", ".join(
            f"{run.path} from {(start or 'random weights')[:16]}"
            for run, start in zip(models, starts, strict=True)
        )
        raise ValueError(f"a mean is of models that were tuned on one model: {rows}")
    return min(common)


def _check_alike(first: Run, run: Run) -> None:
    """Raises ValueError where two models do not hold the same float32 arrays and tokens."""
    where = f"{run.path} and {first.path}"
    own, shared = run.tokenizer, first.tokenizer
    if own.fingerprint() != shared.fingerprint() or own.templates != shared.templates:
        raise ValueError(f"{where} have another tokenizer or chat template")
    if run.model.storage:
        kinds = ", ".join(run.model.storage_kinds)
        raise ValueError(f"{run.path} is stored as {kinds}: a mean is of weights in float32")
    if _architecture(run.model) != _architecture(first.model):
        raise ValueError(f"{where} are models of different shapes")
    parameters = [
        {
            name: (sums.shape, sums.dtype)
            for name, sums in each.checkpoint.checksums("model/").items()
        }
        for each in (run, first)
    ]
    attached = sorted(name for names in parameters for name in names if tree.is_attached(name))
    if attached or parameters[0] != parameters[1]:
        odd = attached or sorted(parameters[0].items() ^ parameters[1].items())[0][:1]
        raise ValueError(f"{where} do not hold the same parameters: {odd[0]}")


def _architecture(model: ModelConfig) -> dict[str, Any]:
    """The config without how it is computed."""
    own_names = {field.name for field in dataclasses.fields(ComputeConfig)}
    return {name: value for name, value in schema.to_dict(model).items() if name not in own_names}
