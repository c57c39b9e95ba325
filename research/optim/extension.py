"""What becomes of a learning-rate schedule when a run is resumed with another one, or other steps.

A schedule is a function of the step alone, so another length bends it for the steps already taken
too: a cosine that has ended goes up again. That is refused, unless the config says what is meant
(`ScheduleConfig.on_resume`).
"""

from __future__ import annotations

import dataclasses

import numpy as np

from research.optim.schedules import Schedule, ScheduleConfig, learning_rate

# two computations of one float32 number; a schedule that bends does so by far more
_TOLERANCE = 1e-5
# fields that say what happens on resume, and so may differ while a schedule is kept
_EXTENSION = ("steps", "on_resume", "decays")


@dataclasses.dataclass(frozen=True)
class Course:
    """A schedule, and the number of steps of its run."""

    config: ScheduleConfig
    steps: int

    @property
    def length(self) -> int:
        """Number of steps until the final rate."""
        return self.config.steps or self.steps

    def rates(self, first: int, last: int) -> np.ndarray:
        """[last - first + 1] learning rates of steps `first` to `last`, counted from 1."""
        steps = np.arange(first - 1, last, dtype=np.float32)
        schedule = Schedule.make(self.config, self.steps)
        rates = np.asarray(learning_rate(self.config.kind, schedule, steps))  # type: ignore[arg-type]
        return np.broadcast_to(rates, steps.shape)


def extend(then: Course, now: Course, step: int) -> ScheduleConfig:
    """The schedule that a run goes on with after `step` steps.

    Args:
      then: what the steps behind it were trained with.
      now: what is asked for.

    Returns:
      That of `then`, held or with another decay, where `now` says hold or decay; else that of
      `now` where its rates are those of `then` for all steps behind the run (it goes on smoothly
      then, as every schedule does), or where it says bend.

    Raises:
      ValueError: the rates would be others and the config does not say what is meant, or says what
        cannot be done.
    """
    if now == then:
        return now.config
    if now.steps <= step:  # nothing is left to train
        return dataclasses.replace(then.config, steps=then.length)
    is_same = np.isclose(then.rates(1, step), now.rates(1, step), rtol=_TOLERANCE, atol=0)
    on_resume = now.config.on_resume
    extends = on_resume in ("hold", "decay")
    if now.config.on_resume == "bend" or (is_same.all() and not extends):
        return now.config
    if now.config.on_resume == "refuse":
        raise ValueError(_refusal(then, now, step, int(np.flatnonzero(~is_same)[-1]) + 1))
    if changes := _changes(then.config, now.config):
        raise ValueError(
            f"schedule.on_resume={now.config.on_resume} goes on with the schedule as it was, but "
            f"{changes}: put that back, or set schedule.on_resume=bend to take it from here on"
        )
    config = _extended(then, now, step)
    if not Course(config, now.steps).rates(step + 1, now.steps).any():
        raise ValueError(
            f"schedule.on_resume={now.config.on_resume}: the learning rate has come to 0 by step "
            f"{step + 1}, and steps {step + 1} to {now.steps} would train nothing; set "
            "schedule.on_resume=bend to take the rates of the longer schedule"
        )
    return config


def describe(course: Course) -> str:
    """The schedule in a line: peak, kind, length, and what comes after it."""
    config = course.config
    parts = [f"{config.kind}, {config.learning_rate:g} at most, over {course.length} steps"]
    rate = course.rates(course.steps, course.steps)[0]
    parts += [f"decays anew from step {first} to {last}" for first, last in config.decays]
    parts.append(f"{rate:.3g} at step {course.steps}")
    return ", ".join(parts)


def _extended(then: Course, now: Course, step: int) -> ScheduleConfig:
    """The schedule as it was, held or with another decay up to the run's end."""
    longer = dataclasses.replace(then.config, steps=then.length, on_resume=now.config.on_resume)
    ends = [last for _, last in then.config.decays]
    if now.config.on_resume == "hold" or ends[-1:] == [now.steps]:  # the same command once more
        return longer
    return dataclasses.replace(longer, decays=(*longer.decays, (step, now.steps)))


def _changes(then: ScheduleConfig, now: ScheduleConfig) -> str:
    """The settings that differ, apart from those of length and extension."""
    names = [field.name for field in dataclasses.fields(now) if field.name not in _EXTENSION]
    return ", ".join(
        f"schedule.{name} was {getattr(then, name)} and is {getattr(now, name)}"
        for name in names
        if getattr(then, name) != getattr(now, name)
    )


def _describe_decays(config: ScheduleConfig) -> str:
    parts = [f"from step {first} to {last}" for first, last in config.decays]
    return f"a decay {' and '.join(parts)}" if parts else "no decay of its own"


def _refusal(then: Course, now: Course, step: int, bent_step: int) -> str:
    """The message of a schedule that would bend: its rates at the last step that was trained with
    another one and at the next step, what changed, and the settings that say what is meant."""
    changes = _changes(then.config, now.config)
    if then.length != now.length:
        lengths = f"it was over {then.length} steps and is over {now.length}"
        changes = f"{lengths}, {changes}" if changes else lengths
    if then.config.decays != now.config.decays:
        decays = "; ".join(
            f"{who} {_describe_decays(course.config)}"
            for who, course in (("the run has", then), ("the config has", now))
        )
        changes = f"{changes}, {decays}" if changes else decays
    (before,), (after,) = then.rates(bent_step, bent_step), now.rates(bent_step, bent_step)
    (next_rate,), (start,) = now.rates(step + 1, step + 1), then.rates(step + 1, step + 1)
    (final,) = then.rates(now.steps, now.steps)
    return (
        f"its learning rate would bend: step {bent_step} was trained at {before:.3g}, and the "
        f"schedule has {after:.3g} there now, and {next_rate:.3g} at step {step + 1} "
        f"({changes}). Say what is meant: schedule.on_resume=hold keeps the "
        f"schedule as it was, with {final:.3g} at step {now.steps}; decay goes from {start:.3g} to "
        f"{start * then.config.final_share:.3g} over the steps to come; bend takes the rates as "
        "they are now"
    )
