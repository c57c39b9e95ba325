"""Log-probabilities of answers by the model that a run starts from.

An adapter that is switched off would give the same numbers, in a pass more of every step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from research.batch import Batch
from research.config import schema
from research.training.cost import reading_flops
from research.training.heldout_loss import make_score
from research.training.model_fields import Compute, ModelFields
from research.training.program import Program


def reference_of(program: Program, make_initial: Callable[[], Any]) -> ModelFields:
    """The field `reference`.

    Args:
      make_initial: makes the model at the start on the devices.
    """
    initial = program.initial

    def open_model() -> Compute:
        score = make_score(make_initial(), program.batch_sharding)

        def compute(batch: Batch) -> dict[str, np.ndarray]:
            return {"reference": -score(batch)}

        return compute

    content = {
        "base": initial.fingerprint if initial else None,
        "model": schema.to_dict(program.model_config),
    }
    path = str(initial.path if initial else "")
    flops = reading_flops(program.model_config, program.experiment.data.sequence_length)
    return ModelFields("reference", path, flops, content, open_model)
