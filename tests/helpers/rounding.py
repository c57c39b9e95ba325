"""Bounds for two computations of the same numbers, counted in roundings.

An instruction set, a library of products, a mesh or a chunk size decides in which order a sum is
added up, and so how it is rounded. A test says how many roundings lie in a row between what goes in
and what comes out, and how large the numbers are that are rounded; the bound follows, and holds for
any order of summation.

Higham, Accuracy and Stability of Numerical Algorithms (2nd edition, 2002): n roundings in a row
leave a number off by at most n u / (1 - n u) of it (section 3.1), a sum of n terms by as much of
the sum of their absolute values (section 4.2), with u the unit roundoff. Errors of either sign grow
as sqrt(n) (section 2.8): by more than c sqrt(n) u only with probability 2 exp(-c^2 / 2), as Higham
and Mary prove (A New Approach to Probabilistic Rounding Error Analysis, SIAM J. Sci. Comput. 41,
2019). With c = 6 that is one number in 30 million, where a test compares some thousands.

`GRAFT_ROUNDING_LOG=file` appends a line for each comparison: test, place, the largest error as a
share of its bound, the bound.
"""

import json
import math
import os
import sys

import numpy as np

from research.models.config import ModelConfig

# unit roundoff u: half the distance from 1 to the next number of each format
FLOAT64, FLOAT32, FLOAT16, BFLOAT16 = 2.0**-53, 2.0**-24, 2.0**-11, 2.0**-8
SAFE = 6.0  # the c above


def bound(roundings: float, scale: float = 1.0, unit: float = FLOAT32) -> float:
    """How far two computations of a number of size `scale` may lie apart, of which each rounds so
    many times in a row: all in one direction while they are few, SAFE sqrt(n) when they are many.
    """
    both = 2 * roundings
    return min(both, SAFE * math.sqrt(both)) * unit * scale


def assert_close(actual, expected, *, roundings, scale=None, unit=FLOAT32, err_msg="") -> None:
    """Asserts that no number is off by more than `bound(roundings, scale, unit)`.

    The scale is the largest expected number unless given: the numbers of one array come out of
    sums over the same terms, so a small one is as uncertain as a large one.
    """
    actual, expected = (np.asarray(x, np.float64) for x in (actual, expected))
    if scale is None:
        scale = np.abs(expected).max(initial=0)
    limit = float(bound(roundings, scale, unit))
    if path := os.environ.get("GRAFT_ROUNDING_LOG"):
        _log(path, float(np.abs(actual - expected).max(initial=0)), limit)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=limit, err_msg=err_msg)


def moved(steps: int, learning_rate: float, epsilon: float, gradient: float = 0.1) -> float:
    """The scale of what rounding of gradients does to weights that Adam moved.

    A step is learning_rate * m / (sqrt(v) + epsilon): it changes by learning_rate / epsilon of what
    the gradient changes by. A gradient that is clipped to the norm 1 and has some hundred numbers
    or more holds none far above `gradient`.
    """
    return steps * learning_rate / epsilon * gradient


def _log(path, error, limit) -> None:
    frame = sys._getframe(2)
    while frame.f_back and not frame.f_code.co_name.startswith("test_"):
        frame = frame.f_back
    line = {
        "test": os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" (")[0],
        "line": f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}",
        "ratio": error / limit if error else 0.0,
        "bound": limit,
    }
    with open(path, "a") as file:
        file.write(json.dumps(line) + "\n")


def forward_roundings(shape: ModelConfig, length: int = 16) -> int:
    """Roundings in a row from a token of a row of so many to its logits: what is summed over, and
    the few elementwise steps between sums."""
    norm = shape.width + 3  # squares, root, quotient, scale
    attention = norm + shape.width + 3 + shape.head_dim + length + 3 + length  # rotation, softmax
    attention += shape.heads * shape.head_dim + 1
    mlp = norm + shape.width + 5 + shape.mlp_width + 1  # with the activation and its gate
    return shape.layers * (attention + mlp) + norm + shape.width


def gradient_roundings(shape: ModelConfig, rows: int = 8, length: int = 16) -> int:
    """The same to the gradient of a weight: there and back, where each product has two gradients,
    and the sum over the batch's tokens."""
    return 3 * forward_roundings(shape, length) + rows * length
