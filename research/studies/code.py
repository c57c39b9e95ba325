"""The code that a trial's numbers depend on: what training and evaluation import."""

from __future__ import annotations

from research.runtime import code_hash as hashes

ENTRIES = ("research.training.loop", "research.evaluation.report")
# Hashes of older code that gives the same numbers, so that its results count in every study. A
# change of what is computed empties it.
SAME_NUMBERS = ("58ec10f14e894942", "aa8197f82430db20", "f717666410cc895e", "1f1c66ee62b4a5a9")


def code_hash() -> str:
    """Sixteen hexadecimal digits."""
    return hashes.code_hash(ENTRIES)
