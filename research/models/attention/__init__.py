"""Attention backends, one file each, and the mask that they all understand."""

from research.models.attention import blocked, plain
from research.models.attention.mask import Mask

BACKENDS = {"plain": plain.attention, "blocked": blocked.attention}

__all__ = ["BACKENDS", "Mask"]
