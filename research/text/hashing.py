"""Numbers that look drawn and are not: the same in every process and version of numpy."""

import numpy as np

# What the state of SplitMix64 grows by.
STEP = np.uint64(0x9E3779B97F4A7C15)


def splitmix64(x: np.ndarray | np.uint64) -> np.ndarray:
    """The number that SplitMix64 (Steele et al. 2014) gives at each state `x`, uint64."""
    with np.errstate(over="ignore"):  # Arithmetic modulo 2^64 is meant.
        x = x + STEP
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(x ^ (x >> np.uint64(31)))
