"""A base in fewer bits: a run's model with its weights stored as rules say."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from research import tree
from research.adapters.merging import Merged, abstract_base, parameter_names
from research.checkpoints import runs
from research.checkpoints.runs import Run
from research.models import quantization
from research.models.config import StorageKind


def store(
    run: Run,
    out: str | Path,
    rules: tree.Rules[StorageKind],
    say: Callable[[str], None] = lambda name: None,
) -> dict[str, Any]:
    """Writes a run's model, adapters merged, with its weights stored as the rules say.

    Returns:
      kind -> parameters, bytes, and the root mean square error over that of the weights.

    Raises:
      ValueError: a rule that matches nothing or does not fit, or numbers that are not finite.
      FileExistsError: the folder holds a model.
    """
    runs.check_free(out)
    config = dataclasses.replace(run.model, storage=tuple(rules))
    shapes = tree.unstack_shapes(tree.flatten(abstract_base(config)))  # the rules are checked here
    merged = Merged(run)
    report: dict[str, Any] = {}
    arrays: dict[str, jax.Array] = {}
    for name in parameter_names(run.model):
        wide = merged(name)
        place = name.removesuffix("/kernel")
        kind = tree.first_match(rules, place, "float32") if place != name else "float32"
        parts, read = quantization.quantize_matrix(wide, kind)
        arrays |= {name + part: array for part, array in parts.items()}
        line = report.setdefault(kind, {"parameters": 0, "bytes": 0, "error": 0.0, "size": 0.0})
        line["parameters"] += wide.size
        line["bytes"] += sum(array.nbytes for array in parts.values())
        line["error"] += float(np.square(read - wide).sum())
        line["size"] += float(np.square(wide).sum())
        say(name)
    tree.check_names(shapes, arrays, "arrays as they are stored")
    for line in report.values():
        line["error"] = (line["error"] / line.pop("size")) ** 0.5
    source = {"path": str(run.path), "fingerprint": run.fingerprint}
    facts = {"stored": {"from": source, "as": report}}
    runs.write(out, run, arrays, config, experiment=run.experiment, extra_metadata=facts)
    return report
