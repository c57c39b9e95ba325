"""Learning-rate schedules whose numbers are arrays: runs that differ in them share a program.

Optax's schedules take Python numbers; these give the same rates (tests/optim/test_schedules.py)
and can be traced.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from research.config.schema import Count, PositiveNumber, Share

Kind = Literal["constant", "linear", "cosine", "wsd"]


@dataclasses.dataclass(frozen=True)
class ScheduleConfig:
    """Linear warm-up, then a decay to `final_share` of the peak rate, by kind."""

    # highest learning rate
    learning_rate: PositiveNumber = 1e-3
    # constant, linear, cosine (arXiv:1608.03983) or wsd: warm-up, stable, decay (2404.06395)
    kind: Kind = "cosine"
    # number of warm-up steps, from 0 to the peak
    warmup: Count = 0
    # the final rate as a share of the peak
    final_share: Share = 0.1
    # for wsd: the share of all steps over which the rate falls at the end
    decay_share: Share = 0.2


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Schedule:
    """The numbers of a schedule, each a float32 scalar."""

    learning_rate: jax.Array
    warmup: jax.Array
    total: jax.Array
    final_share: jax.Array
    decay_start: jax.Array

    @classmethod
    def make(cls, config: ScheduleConfig, steps: int) -> Schedule:
        """The numbers for a run of `steps` steps.

        Raises:
          ValueError: the warm-up is as long as the run.
        """
        if config.warmup >= max(steps, 1):
            raise ValueError(
                f"schedule: warm-up of {config.warmup} steps in a run of {steps}; lower "
                "schedule.warmup, or train longer"
            )
        stable = (1 - config.decay_share) * steps if config.kind == "wsd" else config.warmup
        numbers = (config.learning_rate, config.warmup, steps, config.final_share, stable)
        return cls(*(jnp.asarray(number, jnp.float32) for number in numbers))


def learning_rate(kind: Kind, schedule: Schedule, step: jax.Array) -> jax.Array:
    """The learning rate of step 0, 1, ... as a scalar."""
    step = jnp.asarray(step, jnp.float32)
    warmup_factor = jnp.minimum(1.0, (step + 1) / jnp.maximum(schedule.warmup, 1))
    start = jnp.maximum(schedule.decay_start, schedule.warmup)
    progress = jnp.clip((step - start) / jnp.maximum(schedule.total - start, 1), 0, 1)
    match kind:
        case "constant":
            factor = jnp.ones(())
        case "linear" | "wsd":
            factor = 1 - progress
        case "cosine":
            factor = 0.5 * (1 + jnp.cos(jnp.pi * progress))
    final = schedule.final_share
    return schedule.learning_rate * warmup_factor * (final + (1 - final) * factor)
