"""A base in fewer bits: a run's model with its weights stored as rules say."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from research import tree
from research.adapters.merging import Merged, abstract_base, parameter_names
from research.checkpoints import runs
from research.checkpoints.runs import Run
from research.models import quantization
from research.models.config import StorageKind


@dataclasses.dataclass
class StorageReport:
    """The weights that are stored in one way.

    Attributes:
      parameters: how many they are.
      bytes: their size as they are stored.
      error: the root mean square of what storing changed, over that of the weights.
    """

    parameters: int = 0
    bytes: int = 0
    error: float = 0.0


def store(
    run: Run,
    out: str | Path,
    rules: tree.Rules[StorageKind],
    progress: Callable[[str], None] = lambda name: None,
) -> dict[str, StorageReport]:
    """Writes a run's model, adapters merged, with its weights stored as the rules say.

    Args:
      rules: ordered (pattern over places, kind of storage).
      progress: called with the name of each parameter when it is stored.

    Returns:
      A report for each kind.

    Raises:
      ValueError: a rule that matches nothing or does not fit, or numbers that are not finite.
      FileExistsError: the folder holds a model.
    """
    runs.check_free(out)
    config = dataclasses.replace(run.model, storage=tuple(rules))
    shapes = tree.unstack_shapes(tree.flatten(abstract_base(config)))  # the rules are checked here
    weights = Merged(run)
    reports: dict[str, StorageReport] = {}
    squares: dict[str, float] = collections.defaultdict(float)
    arrays: dict[str, jax.Array] = {}
    for name in parameter_names(run.model):
        weight = weights(name)
        place = name.removesuffix("/kernel")
        kind = tree.first_match(rules, place, "float32") if place != name else "float32"
        parts, dequantized = quantization.quantize_matrix(weight, kind)
        arrays |= {name + part: array for part, array in parts.items()}
        report = reports.setdefault(kind, StorageReport())
        report.parameters += weight.size
        report.bytes += sum(array.nbytes for array in parts.values())
        report.error += float(np.square(dequantized - weight).sum())
        squares[kind] += float(np.square(weight).sum())
        progress(name)
    tree.check_names(shapes, arrays, "arrays as they are stored")
    for stored_kind, report in reports.items():
        report.error = (report.error / squares[stored_kind]) ** 0.5
    source = {"path": str(run.path), "fingerprint": run.fingerprint}
    as_json = {kind: dataclasses.asdict(report) for kind, report in reports.items()}
    facts = {"stored": {"from": source, "as": as_json}}
    runs.write(out, run, arrays, config, experiment=run.experiment, extra_metadata=facts)
    return reports
