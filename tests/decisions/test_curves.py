"""The law over labels: found where it holds, and as unsure as its questions are few."""

import numpy as np
import pytest

from research.decisions.curves import fit_curve

LABELS = (50, 100, 200)


def exact(count, exponent=0.5, scale=2.0):
    """Scores [C,N] whose share of wrong answers is on the law, to one question."""
    shares = [scale * n**-exponent for n in LABELS]
    return np.stack([(np.arange(count) >= round(share * count)).astype(float) for share in shares])


def test_a_law_that_holds_is_found_and_goes_on():
    curve = fit_curve("LoRA", LABELS, exact(1000))
    # a question of 1,000 is under 1% of the smallest error
    assert curve.slopes[0] == pytest.approx(0.5, abs=1e-2)
    error, gain = 2 * 800**-0.5, curve.gain(600)
    # and of what follows from it
    assert curve.predict(800).value == pytest.approx(1 - error, abs=1e-2)
    # both
    assert gain.value == pytest.approx(2 * 200**-0.5 - error, abs=1e-2)
    assert gain.low < gain.value < gain.high


def test_fewer_questions_and_questions_that_hang_together_leave_it_unsure():
    def width(count, groups=None):
        gain = fit_curve("a", LABELS, exact(count), groups).gain(200)
        return gain.high - gain.low

    assert width(50) > 2 * width(500)
    groups = [str(n // 20) for n in range(400)]
    assert width(400, groups) > 1.5 * width(400)


def test_a_curve_that_no_law_fits_is_unsure_beyond_its_questions():
    scores = exact(500)
    bent = np.stack([scores[0], scores[2], scores[1]])
    straight, odd = (fit_curve("a", LABELS, each).gain(200) for each in (scores, bent))
    assert odd.high - odd.low > 2 * (straight.high - straight.low)


def test_more_labels_never_promise_more_than_all_right():
    scores = np.stack([np.zeros(40), np.arange(40) >= 1, np.ones(40)]).astype(float)
    curve = fit_curve("a", LABELS, scores)
    assert curve.predict(10**6).high <= 1 and curve.means == (0.0, 0.975, 1.0)
    assert curve.predict(1).low >= 0


def test_one_point_is_no_curve():
    assert fit_curve("a", (50,), np.ones((1, 10))) is None
