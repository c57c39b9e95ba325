"""Learning-rate schedules whose numbers are arrays: runs that differ in them share a program.

Optax's schedules take Python numbers; these give the same rates (tests/optim/test_schedules.py)
and can be traced. What a resumed run does with another schedule is in `research.optim.extension`.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from research.config.schema import Count, Positive, PositiveNumber, Share

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
    # number of steps until the final rate, which is held after them; None: the run's
    steps: Positive | None = None
    # what a resumed run does if its rates would not be those that it was trained with: refuse;
    # hold: keep the schedule, at its final rate once it has ended; decay: decay anew from where the
    # rate is, over the steps to come; bend: take the rates as they are asked for now
    on_resume: Literal["refuse", "hold", "decay", "bend"] = "refuse"
    # (first step, last step) of each decay anew, to `final_share` of the rate at its start; a run
    # that is resumed with `on_resume` decay records its own
    decays: tuple[tuple[Count, Positive], ...] = ()

    def __post_init__(self):
        for first, last in self.decays:
            if first >= last:
                raise ValueError(f"decays: no steps from step {first} to step {last}")
        starts = [first for first, _ in self.decays]
        if starts != sorted(set(starts)):
            raise ValueError(f"decays: their first steps must increase, not be {starts}")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Schedule:
    """The numbers of a schedule, each a float32 scalar; `decays` [N, 2], or None without any."""

    learning_rate: jax.Array
    warmup: jax.Array
    total: jax.Array
    final_share: jax.Array
    decay_start: jax.Array
    decays: jax.Array | None = None

    @classmethod
    def make(cls, config: ScheduleConfig, steps: int) -> Schedule:
        """The numbers for a run of `steps` steps.

        Raises:
          ValueError: the warm-up is as long as the schedule.
        """
        total = config.steps or steps
        if config.warmup >= max(total, 1):
            where = "a schedule" if config.steps else "a run"
            raise ValueError(
                f"schedule: warm-up of {config.warmup} steps in {where} of {total}; lower "
                "schedule.warmup, or train longer"
            )
        stable = (1 - config.decay_share) * total if config.kind == "wsd" else config.warmup

        def number(value: float) -> jax.Array:
            return jnp.asarray(value, jnp.float32)

        return cls(
            learning_rate=number(config.learning_rate),
            warmup=number(config.warmup),
            total=number(total),
            final_share=number(config.final_share),
            decay_start=number(stable),
            decays=jnp.asarray(config.decays, jnp.float32) if config.decays else None,
        )


def learning_rate(kind: Kind, schedule: Schedule, step: jax.Array) -> jax.Array:
    """The learning rate of step 0, 1, ...; a scalar, or as many as `step` has elements."""
    step = jnp.asarray(step, jnp.float32)
    if schedule.decays is None:
        return _first_rate(kind, schedule, step)
    # a decay begins at the rate that the schedule had come to, and multiplies it
    first, last = schedule.decays[-1]
    earlier = schedule.decays[:-1] if len(schedule.decays) > 1 else None
    before = dataclasses.replace(schedule, decays=earlier)
    rate = learning_rate(kind, before, jnp.minimum(step, first))
    progress = jnp.clip((step - first) / (last - first), 0, 1)
    share = schedule.final_share + (1 - schedule.final_share) * _shape(kind, progress, linear=True)
    return jnp.where(step <= first, rate, rate * share)


def _first_rate(kind: Kind, schedule: Schedule, step: jax.Array) -> jax.Array:
    """The rate without decays anew."""
    warmup_factor = jnp.minimum(1.0, (step + 1) / jnp.maximum(schedule.warmup, 1))
    start = jnp.maximum(schedule.decay_start, schedule.warmup)
    progress = jnp.clip((step - start) / jnp.maximum(schedule.total - start, 1), 0, 1)
    factor = _shape(kind, progress)
    final = schedule.final_share
    return schedule.learning_rate * warmup_factor * (final + (1 - final) * factor)


def _shape(kind: Kind, progress: jax.Array, linear: bool = False) -> jax.Array:
    """How far a decay is from its end, 1 to 0; `linear`: a constant schedule has one too."""
    match kind:
        case "constant" if not linear:
            return jnp.ones(())
        case "constant" | "linear" | "wsd":
            return 1 - progress
        case "cosine":
            return 0.5 * (1 + jnp.cos(jnp.pi * progress))
