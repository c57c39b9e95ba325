"""Schedules equal Optax's."""

import optax
import pytest

from research.optim.schedules import Schedule, ScheduleConfig, learning_rate
from tests.helpers import rounding

STEPS, WARMUP, RATE = 50, 10, 0.3


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine", "wsd"])
def test_schedule_equals_optax(kind):
    config = ScheduleConfig(RATE, kind, WARMUP, final_share=0.1, decay_share=0.4)
    low, stable = 0.1 * RATE, round(0.6 * STEPS)
    warm = optax.linear_schedule(RATE / WARMUP, RATE, WARMUP - 1)
    rest, start = {
        "constant": (optax.constant_schedule(RATE), WARMUP),
        "linear": (optax.linear_schedule(RATE, low, STEPS - WARMUP), WARMUP),
        "cosine": (optax.cosine_decay_schedule(RATE, STEPS - WARMUP, 0.1), WARMUP),
        "wsd": (optax.linear_schedule(RATE, low, STEPS - stable), stable),
    }[kind]
    expected = optax.join_schedules([warm, optax.constant_schedule(RATE), rest], [WARMUP, start])
    numbers = Schedule.make(config, STEPS)
    ours = [learning_rate(kind, numbers, step) for step in range(STEPS + 5)]
    # a dozen elementwise steps in float32, of numbers that may cancel down to a tenth
    theirs = [expected(step) for step in range(STEPS + 5)]
    rounding.assert_close(ours, theirs, roundings=12)


def test_a_warmup_longer_than_the_run_is_refused():
    with pytest.raises(ValueError, match="warm-up of 60 steps in a run of 50"):
        Schedule.make(ScheduleConfig(RATE, warmup=60), STEPS)
