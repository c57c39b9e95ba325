"""Rungs of the ladder, cheapest first: one file each, and one line here."""

from research.decisions.rungs import constrained, few_shot, instructions, retrieved, zero_shot
from research.decisions.rungs.base import LeftOut, Rung

__all__ = ["PROMPTS", "LeftOut", "Rung"]

# Those that train nothing.
PROMPTS: tuple[Rung, ...] = (
    zero_shot.RUNG,
    instructions.RUNG,
    few_shot.RUNG,
    retrieved.RUNG,
    constrained.RUNG,
)
