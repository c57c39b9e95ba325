"""What a step takes as arrays: runs that differ in nothing else share one program."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from research import step as stepping
from research.experiment import Experiment
from research.methods.base import Method
from research.optim.schedules import Schedule, ScheduleConfig


def make_keys(seed: int) -> jax.Array:
    """Random keys [3] of the start, of what is attached, and of the rows' dropout."""
    return jax.random.split(jax.random.key(seed), 3)


def without_numbers(experiment: Experiment) -> Experiment:
    """The experiment with every number that its program takes as an array set to the same.

    Experiments that are equal without numbers have one program, and differ in `Hyper` alone. What
    is 0 or None stays so: it compiles less.
    """

    return dataclasses.replace(
        experiment,
        seed=0,
        steps=1,
        data=dataclasses.replace(experiment.data, seed=0),
        method=method_without_numbers(experiment.method),
        loss=experiment.loss.without_numbers(),
        schedule=ScheduleConfig(1.0, experiment.schedule.kind),
        learning_rate_rules=(),
        weight_decay_rules=(),
        weight_decay=0.0,
        max_grad_norm=None if experiment.max_grad_norm is None else 1.0,
        dropout=0.5 * bool(experiment.dropout),
        adapter_dropout=0.5 * bool(experiment.adapter_dropout),
        embedding_noise=float(bool(experiment.embedding_noise)),
        average_decay=None if experiment.average_decay is None else 0.5,
    )


def method_without_numbers(method: Method) -> Method:
    """The method with every number that is taken as an array set to the same."""
    return dataclasses.replace(method, **dict.fromkeys(method.array_fields, 1.0))  # type: ignore


def make_hyper(
    experiment: Experiment,
    row_key: jax.Array,
    trainable_names: tuple[str, ...],
    parameters: Mapping[str, Any],
) -> stepping.Hyper:
    """The numbers of the step, which it takes as arrays."""

    def number(x: float | None) -> np.ndarray | None:
        return None if x is None else np.asarray(x, np.float32)

    experiment.method.check_steps(experiment.steps)
    return stepping.Hyper(
        key=row_key,
        schedule=Schedule.make(experiment.schedule, experiment.steps),
        learning_rate_multipliers=stepping.multipliers(
            experiment.learning_rate_rules, trainable_names, parameters, "learning_rate_rules"
        ),
        weight_decay_multipliers=stepping.multipliers(
            experiment.weight_decay_rules, trainable_names, parameters, "weight_decay_rules"
        ),
        weight_decay=np.asarray(experiment.weight_decay, np.float32),
        max_grad_norm=number(experiment.max_grad_norm),
        dropout=number(experiment.dropout or None),
        adapter_dropout=number(experiment.adapter_dropout or None),
        loss=experiment.loss.numbers,
        embedding_noise=number(experiment.embedding_noise or None),
        average_decay=number(experiment.average_decay),
    )
