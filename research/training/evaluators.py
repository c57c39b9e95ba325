"""What asks the model of a run its tasks as it trains.

Tasks are of a floor above (`research.evaluation.in_training`): a run is given what opens them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from research.config.suggestions import suggestion
from research.data.heldout import HeldOut
from research.data.pipeline import Pipeline
from research.experiment import Experiment
from research.models.transformer import Transformer
from research.training.program import Program


class Evaluator(Protocol):
    """Asks a model what an experiment's `evaluation` says, always the same."""

    @property
    def metrics(self) -> Sequence[str]:
        """Names of all that it measures, known before."""
        ...

    @property
    def keys(self) -> Mapping[str, str]:
        """Task, or `bits_per_byte` -> what identifies all that it asks."""
        ...

    def describe(self) -> str:
        """What is asked, in a line for the run's user."""
        ...

    def __call__(self, model: Transformer) -> Mapping[str, float]:
        """Measures the model as it lies on the run's mesh, in whose context it is called.

        Gives of `metrics` what can be said and, beside them, their intervals and what they cost.
        """
        ...


# Reads and checks what the experiment of a program asks, on the data that it trains on.
OpenEvaluator = Callable[[Program, Pipeline], Evaluator]


def check_metrics(
    experiment: Experiment, heldout: Sequence[HeldOut], evaluator: Evaluator | None
) -> None:
    """Checks that there is something to measure where that is asked for.

    Raises:
      ValueError: nothing is measured, or not the metric that the best checkpoint is chosen by.
    """
    if not heldout and evaluator is None and experiment.evaluate_every:
        raise ValueError(
            f"evaluate_every is {experiment.evaluate_every}, and there is nothing to measure: give "
            "`evaluation` (tasks), or `evaluate_split`"
        )
    known = [*(evaluator.metrics if evaluator else ())]
    if heldout:
        known.append("heldout_loss")
    if any(part.bytes for part in heldout):
        known.append("heldout_bits_per_byte")
    name = experiment.checkpoint.best_metric
    if experiment.checkpoint.keep_best and name not in known:
        raise ValueError(
            f"checkpoint.best_metric: this run has no metric {name!r}{suggestion(name, known)}"
        )
