"""A resumed run's learning rates: those that it was trained with, unless it says otherwise."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.optim.extension import Course, describe, extend
from research.optim.schedules import ScheduleConfig
from tests.helpers import rounding

COSINE = ScheduleConfig(1.5e-3, "cosine")
CONFIGS = st.builds(
    ScheduleConfig,
    st.sampled_from([1e-3, 2e-3]),
    st.sampled_from(["constant", "linear", "cosine", "wsd"]),
    st.integers(0, 3),
    final_share=st.sampled_from([0.1, 0.5]),
    steps=st.sampled_from([None, 6, 30]),
    decays=st.sampled_from([(), ((4, 9),), ((4, 9), (7, 20))]),
)


def request(on_resume, steps, then=COSINE, **changes):
    return Course(dataclasses.replace(then, on_resume=on_resume, **changes), steps)


def assert_rates(actual, expected):
    """A dozen elementwise steps in float32, of numbers that may cancel down to a tenth."""
    rounding.assert_close(actual, expected, roundings=12)


def test_a_longer_run_that_would_bend_its_schedule_is_refused_with_the_numbers():
    with pytest.raises(ValueError) as error:
        extend(Course(COSINE, 10), Course(COSINE, 20), 10)
    message = str(error.value)
    (before,), (after, following) = (
        Course(COSINE, 10).rates(10, 10),
        Course(COSINE, 20).rates(10, 11),
    )
    assert f"step 10 was trained at {before:.3g}" in message
    assert f"{after:.3g} there now, and {following:.3g} at step 11" in message
    assert "it was over 10 steps and is over 20" in message
    assert (
        "schedule.on_resume=hold keeps the schedule as it was, with 0.00015 at step 20" in message
    )
    assert "decay goes from 0.00015 to 1.5e-05 over the steps to come; bend takes" in message


def test_hold_and_decay_are_done_where_the_rates_behind_are_equal_too():
    constant = ScheduleConfig(1e-2, "constant")
    config = extend(Course(constant, 10), request("decay", 20, constant), 10)
    rates = Course(config, 20).rates(1, 20)
    assert (rates[:10] == np.float32(1e-2)).all() and (np.diff(rates[10:]) < 0).all()
    wsd = ScheduleConfig(1e-2, "wsd", steps=20)
    longer = request("hold", 40, ScheduleConfig(1e-2, "wsd"))
    config = extend(Course(wsd, 10), longer, 10)
    assert_rates(Course(config, 40).rates(1, 20), Course(wsd, 20).rates(1, 20))
    assert extend(Course(config, 40), longer, 12) == config  # killed before its decay, and again


@pytest.mark.parametrize("steps", [7, 9])
def test_decay_is_done_in_a_run_that_is_not_made_longer(steps):
    constant = ScheduleConfig(1.0, "constant")
    config = extend(Course(constant, 9), request("decay", steps, constant), 5)
    assert config.decays == ((5, steps),)
    rates = Course(config, steps).rates(1, steps + 1)
    assert (rates[:6] == 1).all() and (np.diff(rates[5:]) < 0).all()
    assert extend(Course(config, steps), request("decay", steps, constant), 6) == config
    begun = request("decay", 9, constant)  # it said so from the start: nothing to extend
    assert extend(begun, begun, 5) == begun.config


@pytest.mark.parametrize("step", [4, 10])
def test_hold_keeps_the_schedule_and_then_its_final_rate(step):
    config = extend(Course(COSINE, 10), request("hold", 20), step)
    rates = Course(config, 20).rates(1, 20)
    assert_rates(rates[:10], Course(COSINE, 10).rates(1, 10))
    assert_rates(rates[10:], np.full(10, 1.5e-4))
    assert extend(Course(config, 20), request("hold", 20), 15) == config  # the same command
    assert (
        describe(Course(config, 20)) == "cosine, 0.0015 at most, over 10 steps, 0.00015 at step 20"
    )


@pytest.mark.parametrize("step", [4, 10])
def test_decay_begins_where_the_rate_is_and_ends_at_the_runs_end(step):
    config = extend(Course(COSINE, 10), request("decay", 20), step)
    rates, then = Course(config, 20).rates(1, 21), Course(COSINE, 10).rates(1, step + 1)
    assert_rates(rates[: step + 1], then)
    progress = np.arange(21 - step) / (20 - step)
    shape = 0.5 * (1 + np.cos(np.pi * progress))
    assert_rates(rates[step:], then[-1] * (0.1 + 0.9 * shape))
    assert extend(Course(config, 20), request("decay", 20), 15) == config  # the same command
    longer = extend(Course(config, 20), request("decay", 30), 20)
    assert longer.decays == ((step, 20), (20, 30)) and longer.steps == 10
    assert_rates(Course(longer, 30).rates(1, 20), rates[:20])
    assert f"decays anew from step {step} to 20" in describe(Course(config, 20))


def test_bend_takes_what_is_asked():
    course = request("bend", 20, learning_rate=2e-3)
    assert extend(Course(COSINE, 10), course, 10) == course.config


def test_a_constant_rate_decays_too():
    constant = ScheduleConfig(1e-3, "constant", steps=10, decays=((10, 20),))
    assert_rates(Course(constant, 20).rates(11, 21), 1e-3 * np.linspace(1, 0.1, 11))


@given(
    then=CONFIGS, now=CONFIGS, steps=st.tuples(*[st.integers(5, 40)] * 2), step=st.integers(1, 30)
)
def test_what_is_accepted_without_a_word_has_the_rates_of_every_step_behind(then, now, steps, step):
    before, after = Course(then, steps[0]), Course(now, steps[1])
    try:
        config = extend(before, after, step)
    except ValueError as error:
        assert "would bend" in str(error)
        return
    if steps[1] > step:
        assert_rates(Course(config, steps[1]).rates(1, step), before.rates(1, step))


@pytest.mark.parametrize(
    ("then", "now", "step"),
    [
        (("wsd", 10), ("wsd", 20), 8),  # its stable part has any length
        (("constant", 10), ("constant", 20), 10),
        (("constant", 10), ("wsd", 20), 10),
        (("cosine", 10), ("cosine", 10), 10),
    ],
)
def test_what_does_not_bend_needs_no_word(then, now, step):
    before, after = (Course(ScheduleConfig(1e-3, kind), steps) for kind, steps in (then, now))
    assert extend(before, after, step) == after.config


@pytest.mark.parametrize(
    ("course", "message"),
    [
        (request("hold", 20, learning_rate=2e-3), "learning_rate was 0.0015 and is 0.002.*bend"),
        (request("decay", 20, kind="linear"), "schedule.kind was cosine and is linear"),
        (request("refuse", 10, warmup=3), "would bend.*schedule.warmup was 0 and is 3"),
        (request("refuse", 8), "would bend"),  # a shorter run
    ],
)
def test_other_changes_are_named(course, message):
    with pytest.raises(ValueError, match=message):
        extend(Course(COSINE, 10), course, 5)


def test_a_refusal_names_the_decay_that_a_run_was_extended_by():
    decayed = extend(Course(COSINE, 10), request("decay", 20), 10)
    message = r"the run has a decay from step 10 to 20; the config has no decay of its own\)"
    with pytest.raises(ValueError, match=message):
        extend(Course(decayed, 20), Course(COSINE, 30), 15)


@pytest.mark.parametrize("on_resume", ["hold", "decay"])
def test_a_rate_that_has_come_to_0_trains_nothing_and_is_refused(on_resume):
    then = dataclasses.replace(COSINE, final_share=0.0)
    with pytest.raises(ValueError, match="has come to 0 by step 11, and steps 11 to 20"):
        extend(Course(then, 10), request(on_resume, 20, then), 10)


def test_a_run_with_nothing_left_to_train_keeps_its_schedule():
    assert extend(Course(COSINE, 10), Course(COSINE, 5), 6) == dataclasses.replace(COSINE, steps=10)


@pytest.mark.parametrize("decays", [((5, 5),), ((5, 9), (5, 12))])
def test_decays_without_steps_or_order_are_refused(decays):
    with pytest.raises(ValueError, match="decays: "):
        ScheduleConfig(decays=decays)
