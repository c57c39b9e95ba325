"""Whether a model is as often right as it is sure."""

from __future__ import annotations

import dataclasses

import numpy as np

BINS = 15


@dataclasses.dataclass(frozen=True)
class Calibration:
    """How far what a model is sure of lies from what it is right in."""

    # mean distance of sureness and share of right answers, over bins of sureness, by their size
    # (expected calibration error: Guo 2017, arXiv:1706.04599, equation 3)
    error: float
    # mean squared distance of sureness from 1 where right, 0 where wrong (Brier 1950)
    brier: float
    # share of right answers in the surest half
    surest_half: float


def calibrate(confidences: np.ndarray, right: np.ndarray, bins: int = BINS) -> Calibration:
    """Calibration of N answers.

    Args:
      confidences: [N] the probability that the model gives its answer, from 0 to 1.
      right: [N] 1 where it is right, 0 where it is wrong.
      bins: of equal width.

    Raises:
      ValueError: nothing, or a confidence that is no probability.
    """
    confidences, right = np.asarray(confidences, float), np.asarray(right, float)
    if not len(confidences) or not ((confidences >= 0) & (confidences <= 1)).all():
        raise ValueError("calibration needs probabilities from 0 to 1, one at least")
    sums = np.bincount(bin_numbers(confidences, bins), confidences - right, minlength=bins)
    # of equally sure ones the earlier: the same half each time
    surest = np.argsort(-confidences, kind="stable")[: (len(right) + 1) // 2]
    return Calibration(
        error=float(np.abs(sums).sum() / len(right)),
        brier=float(np.mean((confidences - right) ** 2)),
        surest_half=float(right[surest].mean()),
    )


def bin_numbers(confidences: np.ndarray, bins: int = BINS) -> np.ndarray:
    """[N] the bin of each confidence; a bin has its upper edge, as in the paper."""
    return np.clip(np.ceil(confidences * bins) - 1, 0, bins - 1).astype(int)


def confidence(scores: np.ndarray) -> float:
    """The probability of the likeliest of some options.

    Args:
      scores: [C] log-likelihoods in nats.
    """
    shifted = np.exp(scores - np.max(scores))
    return float(shifted.max() / shifted.sum())
